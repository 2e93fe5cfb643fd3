"""A frozen mapping from small numbers that is cheap to change a copy of.

State is frozen data: every event makes another one. With thousands of workers a copied `dict` per
event makes a recovery quadratic. Here a change copies one shard and the list of shards, about
twice the root of the size.
"""

from collections.abc import ItemsView, Iterable, Iterator, Mapping
from typing import Final, TypeVar

Value = TypeVar("Value")

SHARD_SIZE: Final = 128
"""Numbers per shard: the root of 16,384."""


class NumberMap(Mapping[int, Value]):
    """A mapping whose keys are whole numbers, iterated in ascending order.

    >>> few = NumberMap({7: "a", 300: "b"})
    >>> more = few.with_item(1, "c")
    >>> sorted(few.items()), list(more.items())
    ([(7, 'a'), (300, 'b')], [(1, 'c'), (7, 'a'), (300, 'b')])
    """

    __slots__ = ("_length", "_shards")

    def __init__(self, items: Mapping[int, Value] | None = None) -> None:
        self._shards: dict[int, dict[int, Value]] = {}
        self._length = len(items) if items else 0
        for number, value in (items or {}).items():
            self._shards.setdefault(number // SHARD_SIZE, {})[number] = value

    def __getitem__(self, number: int) -> Value:
        return self._shards[number // SHARD_SIZE][number]

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int):
            return False
        shard = self._shards.get(number // SHARD_SIZE)
        return shard is not None and number in shard

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        for place in sorted(self._shards):
            yield from sorted(self._shards[place])

    def items(self) -> ItemsView[int, Value]:
        """As of any mapping, but nothing is looked up."""
        return {
            number: shard[number]
            for _, shard in sorted(self._shards.items())
            for number in sorted(shard)
        }.items()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, NumberMap):
            return self._shards == other._shards
        return dict(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"NumberMap({dict(self.items())})"

    def with_item(self, number: int, value: Value) -> "NumberMap[Value]":
        """The same with one item added or changed."""
        place = number // SHARD_SIZE
        before = self._shards.get(place, {})
        shard = {**before, number: value}
        length = self._length + len(shard) - len(before)
        return _made({**self._shards, place: shard}, length)

    def with_items(self, items: Iterable[tuple[int, Value]]) -> "NumberMap[Value]":
        """The same with items added or changed."""
        shards, copied, length = dict(self._shards), set[int](), self._length
        for number, value in items:
            place = number // SHARD_SIZE
            if place not in copied:
                shards[place] = dict(shards.get(place, {}))
                copied.add(place)
            length += number not in shards[place]
            shards[place][number] = value
        return _made(shards, length)

    def without(self, numbers: Iterable[int]) -> "NumberMap[Value]":
        """The same without some items; those that are not there are left out."""
        shards, copied, length = dict(self._shards), set[int](), self._length
        for number in numbers:
            place = number // SHARD_SIZE
            if number not in shards.get(place, {}):
                continue
            if place not in copied:
                shards[place] = dict(shards[place])
                copied.add(place)
            del shards[place][number]
            length -= 1
            if not shards[place]:
                del shards[place]
                copied.discard(place)
        return _made(shards, length)


def _made(shards: dict[int, dict[int, Value]], length: int) -> NumberMap[Value]:
    made: NumberMap[Value] = NumberMap.__new__(NumberMap)
    made._shards, made._length = shards, length
    return made
