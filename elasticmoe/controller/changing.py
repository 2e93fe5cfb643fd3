"""Changed copies of frozen data: several per event, so that they have to be cheap."""

import dataclasses
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the type checker knows the fields of a class only by this name
    from dataclasses import replace as replace
else:

    def replace(one: Any, /, **changes: Any) -> Any:
        """As `dataclasses.replace`, which calls the constructor with every field; here the fields
        are copied as they are. Not for classes that compute something when they are made.

        Without slots all of them are one dict: with the sixty fields of `JobState` that takes a
        fortieth of the time. With slots it is a quarter.

        Raises:
            TypeError: there is no such field.
        """
        kind, values = type(one), getattr(one, "__dict__", None)
        fields = kind.__dataclass_fields__
        made = object.__new__(kind)
        if values is not None and len(values) == len(fields):
            made.__dict__.update(values, **changes)
            if len(made.__dict__) == len(values):
                return made
        if values is not None or not changes.keys() <= fields.keys():
            return dataclasses.replace(one, **changes)  # some are kept, not fields; or a mistake
        read, setters = _slots_of(kind)
        for set_field, value in zip(setters, read(one), strict=True):
            set_field(made, value)
        for name, value in changes.items():
            object.__setattr__(made, name, value)
        return made


Slots = tuple[Callable[[Any], tuple[Any, ...]], tuple[Callable[[Any, Any], None], ...]]


@cache
def _slots_of(kind: type) -> Slots:
    """Reads all fields of a class with slots; sets each of them."""
    names = [field.name for field in dataclasses.fields(kind)]
    setters = tuple(getattr(kind, name).__set__ for name in names)
    if len(names) > 1:
        return attrgetter(*names), setters
    return lambda one: tuple(getattr(one, name) for name in names), setters
