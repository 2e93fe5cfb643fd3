"""Validation errors as sentences: where, what was given, what is wanted."""

import difflib
import json
import typing
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_WANTED: Final[Mapping[str, str]] = {
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a string in quotes",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "too_short": "must not be empty",
}


def explain(error: ValidationError, root: type[BaseModel]) -> tuple[str, ...]:
    """One line per mistake.

    Args:
        root: the model that was validated; its field names are offered for misspelt ones.
    """
    mistakes = error.errors(include_url=False)
    return tuple(_line(details, root) for details in mistakes if not _follows(details))


def _follows(details: ErrorDetails) -> bool:
    """Whether a list is called too short only because some of its entries are wrong."""
    too_short = details["type"] == "too_short"
    return too_short and len(details["input"]) >= details["ctx"]["min_length"]


def _line(details: ErrorDetails, root: type[BaseModel]) -> str:
    path = _path(details["loc"])
    kind = details["type"]
    if kind == "missing":
        return f"{path} is missing"
    if kind == "value_error":
        return f"{path or 'the scenario'}: {details['ctx']['error']}"
    value = json.dumps(details["input"], default=str)
    value = value if len(value) <= 60 else f"{value[:57]}..."
    if kind == "extra_forbidden":
        return f"{path} = {value}: no such field{_hint(details['loc'], root)}"
    if kind == "model_attributes_type":
        return f"{path} = {value}: must be a table"
    return f"{path} = {value}: {_WANTED.get(kind) or _lowered(details['msg'])}"


def _lowered(text: str) -> str:
    return text.removeprefix("Input should be").strip() if text.startswith("Input") else text


def _hint(location: Sequence[int | str], root: type[BaseModel]) -> str:
    *parents, name = location
    model: type[BaseModel] | None = root
    for key in parents:
        if isinstance(key, str):
            field = model.model_fields.get(key) if model else None
            model = _model_in(field.annotation) if field else None
    known = sorted(model.model_fields) if model else []
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f" (there are {', '.join(known)})" if known else " (there are none)"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (tuple, typing.Union, UnionType):
        found = (_model_in(inner) for inner in typing.get_args(annotation))
        return next((model for model in found if model), None)
    return None


def _path(location: Sequence[int | str]) -> str:
    text = ""
    for key in location:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text
