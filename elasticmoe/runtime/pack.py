"""Turn text into token shards: text files, JSONL and Parquet in, memory-mapped Arrow IPC out."""

import glob
import json
import os
import shutil
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from elasticmoe.checkpoint.store import open_store
from elasticmoe.errors import DataError
from elasticmoe.runtime.dataset import (
    DATASET_NAME,
    TOKENIZER_NAME,
    Dataset,
    ShardInfo,
    SplitInfo,
    TokenArray,
)
from elasticmoe.runtime.tokenizer import Tokenizer, open_tokenizer

_BATCH_TOKENS: Final = 1 << 20
_DOCUMENTS_AT_ONCE: Final = 64
# fmt: off
_SUFFIXES: Final = frozenset({
    ".c", ".cc", ".cpp", ".css", ".go", ".h", ".hpp", ".html", ".java", ".js", ".json", ".jsonl",
    ".md", ".parquet", ".py", ".pyi", ".rs", ".rst", ".sh", ".sql", ".toml", ".ts", ".txt",
    ".xml", ".yaml", ".yml",
})
# fmt: on
_SKIPPED_DIRECTORIES: Final = frozenset(
    ["__pycache__", "dist-packages", "node_modules", "site-packages"]
)

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class PackSummary:
    """What was written."""

    directory: Path
    documents: int
    train_tokens: int
    heldout_tokens: int
    vocab_size: int
    shards: int
    digest: str
    """Of `dataset.json`."""


@dataclass(frozen=True, slots=True)
class _Document:
    place: str
    """File and row, for messages."""
    text: bytes


def stdlib_sources() -> Path:
    """The sources of the running Python's standard library, as a pattern that `pack` takes.

    About 1,800 files and 31 MB with CPython 3.11: its own tests are Python too and stay in;
    site-packages are not part of it and are skipped.
    """
    return Path(sysconfig.get_paths()["stdlib"]) / "**" / "*.py"


def pack(
    inputs: Sequence[AnyPath],
    out_dir: AnyPath,
    *,
    tokenizer: AnyPath = "bytes",
    text_column: str = "text",
    holdout: float = 0.02,
    shard_tokens: int = 64 << 20,
) -> PackSummary:
    """Pack a corpus. The same inputs give the same bytes.

    A document is held out by a hash of its text: the choice does not depend on where the files
    lie or what else is packed, and equal documents never end up on both sides. If that leaves
    one side empty (few documents), the end of the last document is held out.

    Args:
        inputs: files, patterns (`src/**/*.py`), or directories, of which all files with usual
            text suffixes are taken. `.jsonl` and `.parquet` files hold a document per row; any
            other file is one document.
        tokenizer: `bytes`, or a `tokenizers` JSON file, which is copied to the output.
        text_column: of JSONL and Parquet files.
        holdout: share of documents for the `heldout` split; 0: none.
        shard_tokens: tokens per file, rounded up to whole record batches.

    Raises:
        DataError: an input is missing or a row cannot be used; names file and row.
        StorageError: the output directory cannot be written.
    """
    if not 0 <= holdout < 1 or shard_tokens < 1:
        raise ValueError(f"holdout {holdout} is not in [0, 1), or shard_tokens {shard_tokens} < 1")
    codec = open_tokenizer(tokenizer)
    out, store = Path(out_dir), open_store(out_dir)
    store.check_usable()
    store.delete_file(DATASET_NAME)  # without it, the directory is no corpus
    if os.fspath(tokenizer) != "bytes":
        shutil.copyfile(tokenizer, out / TOKENIZER_NAME)
    batch_tokens = min(_BATCH_TOKENS, shard_tokens)
    shard_tokens = -(-shard_tokens // batch_tokens) * batch_tokens
    dtype = np.min_scalar_type(codec.vocab_size - 1)
    train, heldout = (
        _SplitWriter(out, split, dtype, batch_tokens, shard_tokens)
        for split in ("train", "heldout")
    )
    _write_documents(_tokens(_documents(inputs, text_column), codec), train, heldout, holdout)
    dataset = Dataset(
        tokenizer="bytes" if os.fspath(tokenizer) == "bytes" else TOKENIZER_NAME,
        vocab_size=codec.vocab_size,
        separator=codec.separator,
        dtype=str(dtype),
        batch_tokens=batch_tokens,
        shard_tokens=shard_tokens,
        splits={"train": train.close(), "heldout": heldout.close()},
    )
    store.write_small(DATASET_NAME, dataset.to_text().encode())
    shards = {shard.name for split in dataset.splits.values() for shard in split.shards}
    for old in {path.name for path in out.glob("*-?????.arrow")} - shards:
        store.delete_file(old)  # of an earlier, larger corpus in the same directory
    return PackSummary(
        directory=out,
        documents=train.documents + heldout.documents,
        train_tokens=dataset.splits["train"].tokens,
        heldout_tokens=dataset.splits["heldout"].tokens,
        vocab_size=codec.vocab_size,
        shards=len(shards),
        digest=dataset.digest,
    )


def _write_documents(
    documents: Iterable[tuple[bytes, TokenArray]],
    train: "_SplitWriter",
    heldout: "_SplitWriter",
    holdout: float,
) -> None:
    """Send each document to its split; the last one is kept back until both are known."""
    last: tuple[_SplitWriter, TokenArray] | None = None
    for text, tokens in documents:
        if last:
            last[0].add(last[1])
        chosen = xxhash.xxh3_64_intdigest(text) < holdout * 2**64
        last = (heldout if chosen else train), tokens
    if last is None:
        raise DataError("the inputs hold no text")
    writer, tokens = last
    other = train if writer is heldout else heldout
    if not holdout or other.tokens:
        writer.add(tokens)
        return
    wanted = int(holdout * (train.tokens + heldout.tokens + len(tokens)))
    cut = len(tokens) - min(max(1, wanted), len(tokens) // 2)
    train.add(tokens[:cut])
    heldout.add(tokens[cut:])


def _tokens(documents: Iterator[_Document], codec: Tokenizer) -> Iterator[tuple[bytes, TokenArray]]:
    """Texts with their tokens and the separator; in batches, which tokenizers do in parallel."""
    while batch := list(islice(documents, _DOCUMENTS_AT_ONCE)):
        try:
            encoded = codec.encode([document.text for document in batch])
        except UnicodeDecodeError as error:
            bad = next(document for document in batch if document.text == error.object)
            raise DataError(
                f"{bad.place}: byte {error.start} is not UTF-8, which this tokenizer needs"
            ) from None
        for document, tokens in zip(batch, encoded, strict=True):
            yield document.text, np.append(tokens, tokens.dtype.type(codec.separator))


def _documents(inputs: Sequence[AnyPath], text_column: str) -> Iterator[_Document]:
    for path in _files(inputs):
        try:
            if path.suffix == ".jsonl":
                found = _jsonl_documents(path, text_column)
            elif path.suffix == ".parquet":
                found = _parquet_documents(path, text_column)
            else:
                found = iter([_Document(f"{path}, row 0", path.read_bytes())])
            yield from (document for document in found if document.text)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None


def _files(inputs: Sequence[AnyPath]) -> Iterator[Path]:
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found = [file for file in _walk(path) if file.suffix.lower() in _SUFFIXES]
        elif path.exists():
            found = [path]
        else:
            names = sorted(glob.glob(os.fspath(given), recursive=True))
            found = [Path(name) for name in names if not _skipped(name) and Path(name).is_file()]
        if not found:
            raise DataError(f"{given}: no such file, or a directory or pattern without text files")
        yield from found


def _walk(directory: Path) -> Iterator[Path]:
    for root, directories, files in os.walk(directory):
        directories[:] = sorted(d for d in directories if not (_skipped(d) or d[0] == "."))
        yield from (Path(root, file) for file in sorted(files) if file[0] != ".")


def _skipped(name: str) -> bool:
    return not _SKIPPED_DIRECTORIES.isdisjoint(name.split(os.sep))


def _jsonl_documents(path: Path, column: str) -> Iterator[_Document]:
    with path.open("rb") as lines:
        for row, line in enumerate(lines):
            if not line.strip():
                continue
            place = f"{path}, row {row}"
            try:
                text = json.loads(line)[column]
            except ValueError as error:
                raise DataError(f"{place}: not JSON: {error}") from None
            except (KeyError, TypeError, IndexError):
                raise DataError(f"{place}: not an object with a field {column!r}") from None
            yield _text_document(place, text)


def _parquet_documents(path: Path, column: str) -> Iterator[_Document]:
    with pq.ParquetFile(path) as file:
        if column not in file.schema_arrow.names:
            raise DataError(
                f"{path}, row 0: no column {column!r} among {', '.join(file.schema_arrow.names)}"
            )
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for text in batch.column(0).to_pylist():
                yield _text_document(f"{path}, row {row}", text)
                row += 1


def _text_document(place: str, text: Any) -> _Document:
    if isinstance(text, bytes):
        return _Document(place, text)
    if not isinstance(text, str):
        raise DataError(f"{place}: the text is of type {type(text).__name__}")
    try:
        return _Document(place, text.encode())
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: not valid text: {error}") from None


class _SplitWriter:
    """Writes one split's stream as shards of record batches of fixed size."""

    def __init__(
        self, directory: Path, split: str, dtype: Any, batch_tokens: int, shard_tokens: int
    ) -> None:
        self.documents = 0
        self.tokens = 0
        self._directory, self._split = directory, split
        self._batches_per_shard = shard_tokens // batch_tokens
        self._schema = pa.schema([pa.field("tokens", pa.from_numpy_dtype(dtype), nullable=False)])
        self._batch, self._filled = np.empty(batch_tokens, dtype=dtype), 0
        self._writer: pa.RecordBatchFileWriter | None = None
        self._batches = 0
        self._shard_tokens = 0
        self._shards: list[ShardInfo] = []

    def add(self, tokens: TokenArray) -> None:
        """Append a document."""
        self.documents += 1
        self.tokens += len(tokens)
        while len(tokens):
            piece = tokens[: len(self._batch) - self._filled]
            self._batch[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            tokens = tokens[len(piece) :]
            if self._filled == len(self._batch):
                self._write_batch()

    def close(self) -> SplitInfo:
        """Write what is left."""
        if self._filled:
            self._write_batch()
        if self._writer:
            self._finish_shard()
        return SplitInfo(self.documents, tuple(self._shards))

    @property
    def _name(self) -> str:
        return f"{self._split}-{len(self._shards):05d}.arrow"

    @property
    def _beside(self) -> Path:
        return self._directory / f".{self._name}.part"

    def _write_batch(self) -> None:
        if self._writer is None:
            self._writer = pa.ipc.new_file(os.fspath(self._beside), self._schema)
        array = pa.array(self._batch[: self._filled])
        self._writer.write_batch(pa.record_batch([array], schema=self._schema))
        self._shard_tokens += self._filled
        self._filled = 0
        self._batches += 1
        if self._batches == self._batches_per_shard:
            self._finish_shard()

    def _finish_shard(self) -> None:
        assert self._writer
        self._writer.close()
        digest = xxhash.xxh3_128()
        with self._beside.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        size = self._beside.stat().st_size
        name = self._name
        # renamed, so that a job that still maps an older shard keeps reading the older one
        self._beside.replace(self._directory / name)
        self._shards.append(ShardInfo(name, self._shard_tokens, size, digest.hexdigest()))
        self._writer, self._batches, self._shard_tokens = None, 0, 0
