"""A packed corpus: Arrow IPC shards of one flat stream of tokens per split, and `dataset.json`.

All shards of a split but the last hold `shard_tokens` tokens, all record batches of a shard but
the last `batch_tokens`; so token t of a split lies in record batch t // batch_tokens of it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from elasticmoe.errors import DataError

FORMAT: Final = 1
DATASET_NAME: Final = "dataset.json"
TOKENIZER_NAME: Final = "tokenizer.json"

TokenArray = np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]
Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One Arrow IPC file."""

    name: str
    tokens: int
    num_bytes: int
    hash: str
    """xxh3_128 of the file."""


@dataclass(frozen=True, slots=True)
class SplitInfo:
    """The documents of one split, as one stream of tokens."""

    documents: int
    shards: tuple[ShardInfo, ...]

    @property
    def tokens(self) -> int:
        """Tokens, separators included."""
        return sum(shard.tokens for shard in self.shards)


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` says."""

    tokenizer: str
    """`bytes`, or the name of a `tokenizers` file in the same directory."""
    vocab_size: int
    separator: int
    dtype: str
    batch_tokens: int
    shard_tokens: int
    splits: Mapping[str, SplitInfo]
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """Hash of everything above, shard hashes included."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()[:32]

    @property
    def schema(self) -> pa.Schema:
        """Of every shard."""
        dtype = pa.from_numpy_dtype(np.dtype(self.dtype))
        return pa.schema([pa.field("tokens", dtype, nullable=False)])

    def to_text(self) -> str:
        """The text of `dataset.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def read_dataset(directory: str | os.PathLike[str]) -> Dataset:
    """Read a directory's `dataset.json`.

    Raises:
        DataError: it is missing, damaged or of another format.
    """
    path = Path(directory) / DATASET_NAME
    try:
        plain = json.loads(path.read_text())
        return _parse(plain)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: pack the corpus with `elasticmoe data pack`") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a dataset description: {error!r}. Pack again.") from None


def _parse(plain: Mapping[str, Any]) -> Dataset:
    if plain["format"] != FORMAT:
        raise ValueError(f"format {plain['format']}, this version reads {FORMAT}")
    splits = {
        name: SplitInfo(split["documents"], tuple(ShardInfo(**s) for s in split["shards"]))
        for name, split in plain["splits"].items()
    }
    return Dataset(**{**plain, "splits": splits})


class TokenStream:
    """One split of a packed corpus, memory-mapped. Only what is read is loaded."""

    def __init__(self, directory: str | os.PathLike[str], split: Split) -> None:
        """
        Raises:
            DataError: the split or a shard is missing, truncated, or no shard of this corpus.
        """
        self._directory = Path(directory)
        self.dataset = read_dataset(directory)
        if split not in self.dataset.splits:
            raise DataError(f"{directory} has no split {split!r}")
        self._info = self.dataset.splits[split]
        self.num_tokens = self._info.tokens
        self._shards = [self._open(shard) for shard in self._info.shards]
        self._batches: dict[int, TokenArray] = {}

    def copy_to(self, out: np.ndarray[tuple[int], Any], start: int) -> None:
        """Fill an array with the tokens from `start` on.

        Raises:
            DataError: a record batch is damaged; names file and row.
        """
        size, filled = self.dataset.batch_tokens, 0
        while filled < len(out):
            index, first = divmod(start + filled, size)
            piece = self._batch(index)[first : first + len(out) - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)

    def batches(self) -> Iterator[TokenArray]:
        """The whole stream in order, piece by piece; not writable."""
        for index in range(-(-self.num_tokens // self.dataset.batch_tokens)):
            yield self._batch(index)

    def place(self, token: int) -> str:
        """File and row of a token, for messages."""
        shard, row = divmod(token, self.dataset.shard_tokens)
        return f"{self._directory / self._info.shards[shard].name}, row {row}"

    def _open(self, shard: ShardInfo) -> pa.RecordBatchFileReader:
        path = self._directory / shard.name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(
                f"{path}, rows 0 to {shard.tokens - 1}: {error.strerror}. Pack the corpus again."
            ) from None
        if size != shard.num_bytes:
            raise DataError(
                f"{path}, about row {min(size * shard.tokens // shard.num_bytes, shard.tokens)}: "
                f"the file has {size:,} bytes instead of {shard.num_bytes:,}. "
                "Pack the corpus again."
            )
        try:
            reader = pa.ipc.open_file(pa.memory_map(os.fspath(path)))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}, row 0: not an Arrow file: {error}") from None
        if reader.schema != self.dataset.schema:
            raise DataError(
                f"{path}, row 0: its columns are {_one_line(reader.schema)}, "
                f"not {_one_line(self.dataset.schema)}"
            )
        if reader.num_record_batches != -(-shard.tokens // self.dataset.batch_tokens):
            raise DataError(f"{path}, row 0: {reader.num_record_batches} record batches")
        return reader

    def _batch(self, index: int) -> TokenArray:
        if index not in self._batches:
            size = self.dataset.batch_tokens
            shard, inside = divmod(index * size, self.dataset.shard_tokens)
            try:
                batch = self._shards[shard].get_batch(inside // size)
                batch.validate()
                tokens = _as_array(batch.column(0))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DataError(f"{self.place(index * size)}: damaged: {error}") from None
            if len(tokens) != min(size, self.num_tokens - index * size):
                raise DataError(f"{self.place(index * size)}: {len(tokens)} tokens in a batch")
            self._batches[index] = tokens
        return self._batches[index]


def _as_array(column: Any) -> TokenArray:
    """View a column without nulls. Arrow's own `to_numpy` imports pandas on its first call: most of
    a second in a freshly forked worker, in the middle of its first step."""
    if column.null_count:
        raise ValueError(f"{column.null_count} tokens are missing")
    values = column.buffers()[1]
    dtype = np.dtype(str(column.type))
    return np.frombuffer(values, dtype, len(column), column.offset * dtype.itemsize)


def _one_line(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
