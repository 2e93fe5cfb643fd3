"""Messages as JSON and back. Nothing is ever unpickled.

A message is a frozen dataclass whose fields are plain values, tuples, lists, other dataclasses or
plain JSON data. Where a field may hold one of several message classes (`Reported.report`), the
nested message is tagged with its class name too.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any


def encode(message: Any) -> dict[str, Any]:
    """Turn a message dataclass into plain data, tagged with its class name."""
    return {"kind": type(message).__name__, **_fields(message)}


def decode(kinds: Mapping[str, type], plain: Mapping[str, Any]) -> Any:
    """Rebuild a message from `encode`'s output.

    Args:
        kinds: message classes by name.
        plain: the tagged data; fields unknown to the class are an error, missing ones with a
            default are filled in, so that an older record can be read by a newer version.

    Raises:
        ValueError: no message of these kinds looks like that.
    """
    kind = kinds.get(plain.get("kind", ""))
    if kind is None:
        raise ValueError(f"message kind {plain.get('kind')!r} is not one of {sorted(kinds)}")
    return build(kind, {key: value for key, value in plain.items() if key != "kind"})


def build(hint: Any, value: Any) -> Any:
    """Rebuild a value of a type from plain data: dataclasses, tuples, lists, unions of them.

    Raises:
        ValueError: the data has fields the dataclass lacks, or lacks fields it needs.
    """
    make = _maker(hint)
    return value if make is None or value is None else make(value)


@cache
def _maker(hint: Any) -> Callable[[Any], Any] | None:
    """What rebuilds values of a type, other than none; none: they are plain data already."""
    if dataclasses.is_dataclass(hint):
        return partial(_build_dataclass, hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        return lambda items: tuple(build(arg, one) for arg, one in zip(args, items, strict=True))
    if origin is tuple:
        return tuple if _maker(args[0]) is None else partial(_build_all, tuple, args[0])
    if origin is list:
        return list if _maker(args[0]) is None else partial(_build_all, list, args[0])
    if origin in (typing.Union, types.UnionType):
        kinds = _message_kinds(hint)
        if len(kinds) > 1:
            return partial(decode, kinds)
        (inner, *others) = [arg for arg in args if arg is not types.NoneType]
        return None if others else _maker(inner)
    return None


def _build_all(many: Callable[[Iterable[Any]], Any], hint: Any, items: Iterable[Any]) -> Any:
    return many(build(hint, item) for item in items)


def by_name(union: Any) -> dict[str, type]:
    """Index the members of a union of message classes by their names."""
    return {kind.__name__: kind for kind in typing.get_args(union)}


def to_line(message: Any) -> bytes:
    """One JSON object and a newline."""
    return json.dumps(encode(message), separators=(",", ":")).encode() + b"\n"


def from_line(kinds: Mapping[str, type], line: bytes) -> Any:
    """Inverse of `to_line`.

    Raises:
        ValueError: the line is not JSON, or not one of these messages.
    """
    plain = json.loads(line)
    if not isinstance(plain, dict):
        raise ValueError(f"a message is a JSON object, not {type(plain).__name__}")
    return decode(kinds, plain)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@cache
def _message_kinds(hint: Any) -> dict[str, type]:
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return {}
    members: tuple[type, ...] = typing.get_args(hint)
    return {kind.__name__: kind for kind in members if hasattr(kind, "__dataclass_fields__")}


@cache
def _tagged_fields(kind: type) -> dict[str, bool]:
    return {name: _is_tagged(hint) for name, hint in _hints(kind).items()}


def _fields(message: Any) -> dict[str, Any]:
    return {
        name: _plain(getattr(message, name), tagged=tagged)
        for name, tagged in _tagged_fields(message.__class__).items()
    }


def _is_tagged(hint: Any) -> bool:
    """Whether values of a field, or the items in it, are one of several message classes."""
    inner = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
    return len(_message_kinds(hint)) > 1 or any(len(_message_kinds(arg)) > 1 for arg in inner)


def _plain(value: Any, *, tagged: bool) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return encode(value) if tagged else _fields(value)
    if isinstance(value, Mapping):
        return {key: _plain(item, tagged=tagged) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, tagged=tagged) for item in value]
    return value


def _build_dataclass(kind: Any, value: Mapping[str, Any]) -> Any:
    makers = _makers(kind)
    unknown = sorted(set(value) - set(makers))
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}")
    fields = dict(value)
    for name, item in value.items():
        make = makers[name]
        if make is not None and item is not None:
            fields[name] = make(item)
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None


@cache
def _makers(kind: type) -> dict[str, Callable[[Any], Any] | None]:
    return {name: _maker(hint) for name, hint in _hints(kind).items()}
