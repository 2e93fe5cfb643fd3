"""The yardstick: a byte model that knows the two bytes before.

Shapes: N = samples, T = tokens of a sample.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from elasticmoe.errors import DataError
from elasticmoe.runtime.data import SampleArray
from elasticmoe.runtime.dataset import TokenStream

_Counts = np.ndarray[Any, np.dtype[np.int64]]


def order2_bits_per_byte(
    train: Sequence[str | os.PathLike[str]],
    heldout_NT: SampleArray,
    seq_len: int,
    add: float = 0.01,
    chunk_tokens: int = 1 << 23,
) -> float:
    """Bits per byte of an add-constant order-2 model on the targets a network is scored on.

    Targets of a sample are its tokens 1 .. seq_len. As for the network, nothing before the
    sample is known: its first target is predicted from one byte (with order-1 counts).

    Args:
        train: packed corpora; counts are taken over all their training shards.
        heldout_NT: samples of a held-out `SampleReader`.
        add: added to every count.
        chunk_tokens: tokens counted at once.

    Raises:
        DataError: a corpus is not of bytes, or a shard is bad.
    """
    counts = _count_triples(train, chunk_tokens).reshape(256, 256, 256)
    pairs = counts.sum(axis=0)
    tokens_NT = heldout_NT[:, : seq_len + 1]
    first = _bits(pairs[tokens_NT[:, 0]], tokens_NT[:, 1], add)
    rest = 0.0
    for row in tokens_NT:  # row by row: all contexts at once would need 2 KB per token
        rest += _bits(counts[row[:-2], row[1:-1]], row[2:], add)
    return (first + rest) / (tokens_NT.shape[0] * seq_len)


def _bits(counts_PV: _Counts, targets_P: np.ndarray[Any, Any], add: float) -> float:
    hits = np.take_along_axis(counts_PV, targets_P[:, None], axis=1)[:, 0]
    totals = counts_PV.sum(axis=1)
    return float(-np.log2((hits + add) / (totals + add * 256)).sum())


def _count_triples(train: Sequence[str | os.PathLike[str]], chunk_tokens: int) -> _Counts:
    counts = np.zeros(1 << 24, dtype=np.int64)
    for directory in train:
        stream = TokenStream(directory, "train")
        if stream.dataset.vocab_size != 256:
            raise DataError(
                f"{directory} has a vocabulary of {stream.dataset.vocab_size}: "
                "the order-2 model needs a corpus of bytes"
            )
        for chunk in _chunks(stream, chunk_tokens):
            index = (chunk[:-2] << 16) | (chunk[1:-1] << 8) | chunk[2:]
            counts += np.bincount(index, minlength=1 << 24)
    return counts


def _chunks(
    stream: TokenStream, chunk_tokens: int
) -> Iterator[np.ndarray[Any, np.dtype[np.int32]]]:
    """Long pieces of the stream; each begins with the last two tokens of the one before."""
    start = 0
    while start + 2 < stream.num_tokens:
        chunk = np.empty(min(chunk_tokens, stream.num_tokens - start), dtype=np.int32)
        stream.copy_to(chunk, start)
        yield chunk
        start += len(chunk) - 2
