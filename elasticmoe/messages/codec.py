"""Messages as JSON and back. Nothing is ever unpickled."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any


def encode(message: Any) -> dict[str, Any]:
    """Turn a message dataclass into plain data, tagged with its class name."""
    return {"kind": type(message).__name__, **dataclasses.asdict(message)}


def decode(kinds: Mapping[str, type], plain: Mapping[str, Any]) -> Any:
    """Rebuild a message from `encode`'s output.

    Args:
        kinds: message classes by name.
        plain: the tagged data; fields unknown to the class are an error, missing ones with a
            default are filled in, so that an older record can be read by a newer version.

    Raises:
        ValueError: the kind is not among `kinds`.
    """
    kind = kinds.get(plain["kind"])
    if kind is None:
        raise ValueError(f"message kind {plain['kind']!r} is not one of {sorted(kinds)}")
    return _build(kind, {key: value for key, value in plain.items() if key != "kind"})


def by_name(union: Any) -> dict[str, type]:
    """Index the members of a union of message classes by their names."""
    return {kind.__name__: kind for kind in typing.get_args(union)}


def to_line(message: Any) -> bytes:
    """One JSON object and a newline."""
    return json.dumps(encode(message), separators=(",", ":")).encode() + b"\n"


def from_line(kinds: Mapping[str, type], line: bytes) -> Any:
    """Inverse of `to_line`."""
    return decode(kinds, json.loads(line))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        hints = _hints(hint)  # type: ignore[arg-type]
        return hint(**{name: _build(hints[name], item) for name, item in value.items()})  # type: ignore[operator]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_build(args[0], item) for item in value)
        return tuple(_build(arg, item) for arg, item in zip(args, value, strict=True))
    if origin is list:
        return [_build(args[0], item) for item in value]
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        inner = [arg for arg in args if arg is not type(None)]
        if len(inner) == 1:
            return _build(inner[0], value)
    return value
