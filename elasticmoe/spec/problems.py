"""Turns validation errors into sentences: the field as users write it, its value, the remedy."""

import difflib
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from elasticmoe.spec.job import JobSpec

_WANTED: Final[Mapping[str, str]] = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "a smaller integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string in quotes",
    "tuple_type": "a list",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "finite_number": "a finite number",
}

_BOUNDS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than": ("gt", "greater than {}"),
    "greater_than_equal": ("ge", "at least {}"),
    "less_than": ("lt", "less than {}"),
    "less_than_equal": ("le", "at most {}"),
}

_LONGEST_VALUE: Final = 60


def explain(error: ValidationError) -> tuple[str, ...]:
    """One line per mistake, in the order of the job's fields."""
    mistakes = error.errors(include_url=False)
    return tuple(_line(details) for details in mistakes if not _follows(details))


def guess(name: str, known: Sequence[str]) -> str:
    """`; did you mean x?` if a known name is close, else nothing.

    >>> guess("replcas", ["replicas", "min"])
    '; did you mean replicas?'
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _follows(details: ErrorDetails) -> bool:
    """Whether a list is called too short only because some of its entries are wrong."""
    too_short = details["type"] == "too_short"
    return too_short and len(details["input"]) >= details["ctx"]["min_length"]


def _line(details: ErrorDetails) -> str:
    location, kind, value = details["loc"], details["type"], details["input"]
    path = _path(location) or "the job"
    remedy = _REMEDIES.get(kind)
    if remedy is not None:
        return remedy(details, path)
    if kind in _WANTED:
        return f"{path} = {_show(value)}: must be {_WANTED[kind]}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{path} = {_show(value)}: must be {words.format(details['ctx'][name])}"
    return f"{path} = {_show(value)}: {details['msg'][:1].lower()}{details['msg'][1:]}"


def _unknown_field(details: ErrorDetails, path: str) -> str:
    *parents, name = details["loc"]
    table = _model_at(parents)
    known = sorted(table.model_fields) if table else []
    hint = guess(str(name), known) or _elsewhere(str(name))
    where = f"[{_path(parents)}]" if parents else "a job"
    choices = f" ({where} has {', '.join(known)})" if not hint else ""
    return f"{path} = {_show(details['input'])}: no such field{hint}{choices}"


def _elsewhere(name: str) -> str:
    """Another table that has a field of this name."""
    for path, table in _tables(JobSpec, ()):
        if name in table.model_fields:
            return f"; did you mean {_path((*path, name))}?"
    return ""


def _missing(details: ErrorDetails, path: str) -> str:
    *parents, name = details["loc"]
    if isinstance(name, int):
        return f"{path} is missing: {_path(parents)} is a longer list"
    table = _model_at(parents)
    field = table.model_fields.get(name) if table else None
    if field is not None and _model_in(field.annotation) is not None:
        example = ', for example with preset = "quickstart"' if path == "model" else ""
        return f"[{path}] is missing: add the table{example}"
    text = field.description if field else None
    return f"{path} is missing: {text[:1].lower() + text[1:] if text else 'it has no default'}"


def _not_a_choice(details: ErrorDetails, path: str) -> str:
    expected = details["ctx"]["expected"]
    choices = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
    hint = guess(str(details["input"]), choices)
    return f"{path} = {_show(details['input'])}: must be {expected.replace(chr(39), chr(34))}{hint}"


def _inconsistent(details: ErrorDetails, path: str) -> str:
    where = "" if path == "the job" else f"[{path}] "
    return f"{where}{details['ctx']['error']}"


def _bad_pattern(details: ErrorDetails, path: str) -> str:
    rule = f"must match {details['ctx']['pattern']}"
    if path == "name":
        rule = (
            "must be 1 to 40 lower-case letters, digits and hyphens, "
            "with a letter or digit at both ends"
        )
    return f"{path} = {_show(details['input'])}: {rule}"


def _empty(details: ErrorDetails, path: str) -> str:
    return f"{path} = {_show(details['input'])}: must not be empty"


def _wrong_length(details: ErrorDetails, path: str) -> str:
    context = details["ctx"]
    wanted = context.get("max_length", context.get("min_length"))
    return f"{path} = {_show(details['input'])}: must have {wanted} entries"


_REMEDIES: Final[Mapping[str, Callable[[ErrorDetails, str], str]]] = {
    "extra_forbidden": _unknown_field,
    "missing": _missing,
    "literal_error": _not_a_choice,
    "value_error": _inconsistent,
    "string_pattern_mismatch": _bad_pattern,
    "string_too_short": _empty,
    "too_short": _empty,
    "too_long": _wrong_length,
}


def _path(location: Sequence[int | str]) -> str:
    """Write a location as users do: `data.sources[0].path`."""
    text = ""
    for key in location:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _model_at(location: Sequence[int | str]) -> type[BaseModel] | None:
    """The model whose fields are named at this place, if there is one."""
    model: type[BaseModel] | None = JobSpec
    for key in location:
        if isinstance(key, int):
            continue
        field = model.model_fields.get(key) if model else None
        model = _model_in(field.annotation) if field else None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation like `YarnSpec | None` or `tuple[SourceSpec, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (tuple, typing.Union, types.UnionType):
        found = (_model_in(inner) for inner in typing.get_args(annotation))
        return next((model for model in found if model), None)
    return None


def _tables(
    model: type[BaseModel], path: tuple[str, ...]
) -> list[tuple[tuple[str, ...], type[BaseModel]]]:
    """All tables of a job with their places, outermost first."""
    found = [(path, model)]
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None and typing.get_origin(field.annotation) is not tuple:
            found += _tables(inner, (*path, name))
    return found
