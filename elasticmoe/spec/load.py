"""From what a user wrote to a `JobSpec`, and back to plain data.

Nothing here opens a file: the command line reads it and hands over its text.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any

from pydantic import ValidationError

from elasticmoe.errors import SpecError
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.presets import CUSTOM, PRESETS
from elasticmoe.spec.problems import explain, guess


def parse_toml(text: str, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job from TOML text; `overrides` as in `parse_data`.

    Raises:
        SpecError: the text is not TOML, or not a valid job.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError((f"this is not valid TOML: {error}",)) from None
    return parse_data(data, overrides)


def parse_json(text: str, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job from JSON text; `overrides` as in `parse_data`.

    Raises:
        SpecError: the text is not JSON, or not a valid job.
    """
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise SpecError((f"this is not valid JSON: {error.msg} (at {where})",)) from None
    if not isinstance(data, dict):
        raise SpecError((f"a job is a JSON object, this is {data!r:.40}",))
    return parse_data(data, overrides)


def parse_data(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> JobSpec:
    """Build a job from plain data: tables, lists, strings, numbers, booleans.

    `model.preset` is expanded first; any field beside it, also a nested one, replaces the
    preset's.

    Args:
        overrides: `path=value`, as in `--set batch.num_waves=8`; the value in TOML syntax, or a
            bare string; `none` clears an optional field.

    Raises:
        SpecError: one line per mistake, each naming the field, its value and the remedy.
    """
    tables = _copy(data)
    for override in overrides:
        _override(tables, override)
    tables = _expand_preset(tables)
    try:
        # By way of JSON, where arrays are tuples and `1` is a float, and nothing else is lenient.
        return JobSpec.model_validate_json(json.dumps(tables, default=_plain))
    except ValidationError as error:
        raise SpecError(explain(error)) from None


def to_data(job: JobSpec) -> dict[str, Any]:
    """Turn a job into plain data; `parse_data` gives the same job back."""
    return job.model_dump(mode="json")


def job_json_schema() -> dict[str, Any]:
    """JSON schema of a job file, descriptions included.

    The fields of `[model]` are optional in it, because a preset may supply them.
    """
    schema = JobSpec.model_json_schema()
    for name in ("ModelSpec", "AttentionSpec", "MoESpec"):
        schema["$defs"][name].pop("required", None)
    schema["$defs"]["ModelSpec"]["properties"]["preset"]["enum"] = [CUSTOM, *PRESETS]
    return schema


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value


def _plain(value: Any) -> str:
    """What JSON cannot say becomes text, so that the type check can refuse it by name."""
    return value.isoformat() if isinstance(value, date | time) else repr(value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise SpecError((f"{key} is given twice in one JSON object; keep one of them",))
        table[key] = value
    return table


def _expand_preset(tables: dict[str, Any]) -> dict[str, Any]:
    model = tables.get("model")
    if not isinstance(model, dict):
        return tables
    name = model.get("preset", CUSTOM)
    if name == CUSTOM:
        return tables
    if not isinstance(name, str) or name not in PRESETS:
        hint = guess(str(name), list(PRESETS)) or ";"
        known = f"{'There' if hint.endswith('?') else 'there'} are {', '.join(PRESETS)}"
        given = json.dumps(name, default=repr)
        raise SpecError((f"model.preset = {given}: no such preset{hint} {known}",))
    return {**tables, "model": _merge(PRESETS[name](), model)}


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _override(tables: dict[str, Any], override: str) -> None:
    """Write one `path=value` into the tables."""
    path, equals, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise SpecError((f"override {override!r} is not of the form path=value",))
    place: Any = tables
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list):
            if not key.isdecimal() or int(key) >= len(place):
                known = f"an index below {len(place)}" if place else "nothing: the list is empty"
                raise SpecError(
                    (
                        f"override {override!r}: {'.'.join(keys[:depth])} is a list, "
                        f"and {key!r} is not {known}",
                    )
                )
            index: Any = int(key)
        elif isinstance(place, dict):
            index = key
            if not last and place.get(key) is None:
                place[key] = {}
        else:
            raise SpecError(
                (f"override {override!r}: {'.'.join(keys[:depth])} is {place!r} and has no fields",)
            )
        if last:
            place[index] = _value(text.strip())
        else:
            place = place[index]


def _value(text: str) -> Any:
    """Read TOML syntax; what is not TOML, or would be a date, is a bare string."""
    if text == "none":
        return None
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = table["value"]
    bare = len(table) > 1 or isinstance(value, date | time)
    return text if bare else value
