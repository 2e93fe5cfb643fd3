"""Classes that a user's job names as `package.module:Class`."""

import importlib

from elasticmoe.errors import SpecError


def load_class(path: str, base: type, field: str) -> type:
    """Import a user's class.

    Args:
        path: `package.module:Class`.
        base: the class it must derive from.
        field: the spec field that names it, for the error.

    Raises:
        SpecError: it cannot be imported, or is not a `base`.
    """
    module_name, _, class_name = path.partition(":")
    if not module_name or not class_name:
        raise SpecError((f"{field}: {path!r} is not a built-in name or package.module:Class",))
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise SpecError((f"{field}: cannot load {path!r}: {error}",)) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise SpecError((f"{field}: {path!r} is not a subclass of {base.__name__}",))
    return found
