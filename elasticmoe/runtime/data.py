"""Samples by number: a pure function of (seed, number), read from memory-mapped shards.

Shapes: N = samples, T = tokens of a sample.
"""

import hashlib
import json

import numpy as np

from elasticmoe.errors import DataError
from elasticmoe.runtime.dataset import Split, TokenStream
from elasticmoe.runtime.shuffle import IntArray, permute, plan_interleave
from elasticmoe.spec.job import DataSpec

SampleArray = np.ndarray[tuple[int, int], np.dtype[np.int64]]


class SampleReader:
    """Reads samples of all sources of a job.

    A sample is a window of `sample_tokens` tokens; windows start every `seq_len` tokens, so
    they share only the targets beyond the last input. `train`: sources take turns by weight
    and each goes through its windows in a new random order per epoch, every window exactly once.
    `heldout`: all windows of all sources once, in one fixed random order, so that the first few
    are typical; seed and weights play no part.
    """

    def __init__(
        self, data: DataSpec, vocab_size: int, sample_tokens: int, *, split: Split = "train"
    ) -> None:
        """
        Raises:
            DataError: a source is missing, damaged, or too short for one sample.
        """
        if sample_tokens <= data.seq_len:
            raise ValueError(f"sample_tokens {sample_tokens} must exceed seq_len {data.seq_len}")
        self._data, self._vocab_size, self._sample_tokens = data, vocab_size, sample_tokens
        self._split = split
        self._streams = [TokenStream(source.path, split) for source in data.sources]
        windows = [
            max(0, (stream.num_tokens - sample_tokens) // data.seq_len + 1)
            for stream in self._streams
        ]
        for source, stream, count in zip(data.sources, self._streams, windows, strict=True):
            if not count and (split == "train" or not any(windows)):
                raise DataError(
                    f"{source.path} has {stream.num_tokens} {split} tokens, one sample needs "
                    f"{sample_tokens}. Pack more text, or lower data.seq_len."
                )
        self._windows = np.array(windows, dtype=np.int64)
        self._interleave = plan_interleave(tuple(source.weight for source in data.sources))
        self.newest = (0, 0)
        """What `read` was last asked for and has given: number of the first sample, and of the one
        behind the last. The record of a step has it from here, so a range that was cut wrongly is
        seen; that each number stands for its own window is for `_locate`, and not checked again."""

    @property
    def num_samples(self) -> int:
        """Different windows of all sources; higher `train` numbers begin further epochs."""
        return int(self._windows.sum())

    @property
    def digest(self) -> str:
        """Hash of what decides which tokens a sample holds, but for the seed: the contents of
        every `dataset.json`, the weights and seq_len. Independent of where the files lie."""
        known = [
            [stream.dataset.digest, source.weight]
            for stream, source in zip(self._streams, self._data.sources, strict=True)
        ]
        text = json.dumps([known, self._data.seq_len])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def read(self, start: int, stop: int) -> SampleArray:
        """The samples numbered `start` to `stop` - 1, int64 [N, T].

        Raises:
            DataError: a shard is damaged, or a token is outside the vocabulary; names file and
                row.
        """
        if not 0 <= start <= stop:
            raise ValueError(f"samples {start} to {stop} are not a range")
        sources_N, windows_N = self._locate(np.arange(start, stop, dtype=np.int64))
        samples_NT = np.empty((stop - start, self._sample_tokens), dtype=np.int64)
        for row, source, window in zip(samples_NT, sources_N, windows_N, strict=True):
            self._streams[source].copy_to(row, int(window) * self._data.seq_len)
        self._check_vocabulary(samples_NT, sources_N, windows_N)
        self.newest = (start, stop)
        return samples_NT

    def _locate(self, numbers_N: IntArray) -> tuple[IntArray, IntArray]:
        """Source of each sample, and its window in the source."""
        if self._split == "heldout":
            ends = np.cumsum(self._windows)
            if len(numbers_N) and numbers_N[-1] >= ends[-1]:
                raise ValueError(f"sample {numbers_N[-1]} of {ends[-1]} held-out samples")
            places_N = permute(numbers_N, int(ends[-1]), "heldout")
            sources_N = np.searchsorted(ends, places_N, side="right").astype(np.int64)
            return sources_N, places_N - (ends - self._windows)[sources_N]
        sources_N, turns_N = self._interleave.locate(numbers_N)
        epochs_N, places_N = np.divmod(turns_N, self._windows[sources_N])
        windows_N = np.empty_like(places_N)
        for source, epoch in np.unique(np.stack([sources_N, epochs_N]), axis=1).T.tolist():
            here = (sources_N == source) & (epochs_N == epoch)
            key = f"{self._data.seed}/{source}/{epoch}"
            windows_N[here] = permute(places_N[here], int(self._windows[source]), key)
        return sources_N, windows_N

    def _check_vocabulary(
        self, samples_NT: SampleArray, sources_N: IntArray, windows_N: IntArray
    ) -> None:
        if not samples_NT.size or samples_NT.max() < self._vocab_size:
            return
        sample, position = np.argwhere(samples_NT >= self._vocab_size)[0].tolist()
        token = int(windows_N[sample]) * self._data.seq_len + position
        raise DataError(
            f"{self._streams[sources_N[sample]].place(token)}: token "
            f"{samples_NT[sample, position]} is outside the vocabulary of {self._vocab_size}. "
            "Set model.vocab_size to fit the tokenizer, or pack the corpus again."
        )
