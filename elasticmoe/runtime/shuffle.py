"""Which window of which source is sample k: closed formulas, so that no list is ever kept.

Shapes: N = samples asked for.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

IntArray = np.ndarray[tuple[int], np.dtype[np.int64]]
_UIntArray = np.ndarray[tuple[int], np.dtype[np.uint64]]

_ROUNDS: Final = 6
_BLOCK_SLOTS: Final = 4096
"""Weights of sources are rounded to multiples of one part in this many."""


def permute(places_N: IntArray, size: int, key: str) -> IntArray:
    """Look up places in a random permutation of 0 .. size - 1 without building it.

    A Feistel network permutes the next larger power of four; what falls outside is sent through
    again until it is inside ("cycle walking"), at most four times on average.

    Args:
        key: chooses the permutation.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 3.

    >>> sorted(permute(np.arange(10), 10, "epoch 0").tolist()) == list(range(10))
    True
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.frombuffer(
        hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest(), dtype="<u8"
    )
    values = places_N.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= size
    return values.astype(np.int64)


def _feistel(values: _UIntArray, half: int, keys: _UIntArray) -> _UIntArray:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: _UIntArray) -> _UIntArray:
    """Source: the finaliser of MurmurHash3."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


@dataclass(frozen=True)
class Interleave:
    """A fixed pattern of sources that repeats; each source's turns are spread evenly over it."""

    source_of_slot: np.ndarray[tuple[int], Any]
    turn_of_slot: np.ndarray[tuple[int], Any]
    """How many earlier slots of the pattern have the same source."""
    turns: np.ndarray[tuple[int], Any]
    """Slots of each source in the pattern."""

    def locate(self, numbers_N: IntArray) -> tuple[IntArray, IntArray]:
        """The source of each sample, and how many earlier samples had the same source."""
        block, slot = np.divmod(numbers_N, len(self.source_of_slot))
        source = self.source_of_slot[slot]
        return source, block * self.turns[source] + self.turn_of_slot[slot]


def plan_interleave(weights: tuple[float, ...]) -> Interleave:
    """Give each source its share of the pattern (by largest remainder, but at least one slot).

    >>> plan_interleave((3.0, 1.0)).source_of_slot[:8].tolist()
    [0, 0, 1, 0, 0, 0, 1, 0]
    """
    if len(weights) == 1:
        return Interleave(*(np.array([value], dtype=np.int64) for value in (0, 0, 1)))
    wanted = np.array(weights) / sum(weights) * _BLOCK_SLOTS
    turns = np.maximum(1, np.floor(wanted)).astype(np.int64)
    rest = max(0, _BLOCK_SLOTS - int(turns.sum()))
    turns[np.argsort(turns - wanted, kind="stable")[:rest]] += 1
    source = np.repeat(np.arange(len(weights)), turns)
    turn = np.concatenate([np.arange(count) for count in turns])
    order = np.argsort((turn + 0.5) / turns[source], kind="stable")
    return Interleave(source[order], turn[order], turns)
