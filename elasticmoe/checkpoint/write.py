"""Write a checkpoint: every worker its packed file, then the controller the manifest."""

import json
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import xxhash

from elasticmoe.checkpoint.manifest import MANIFEST_NAME, FileRow, Manifest, TensorRow, hash_bytes
from elasticmoe.checkpoint.store import DIRECT_ALIGN, Store, WriteBlock
from elasticmoe.checkpoint.tensors import ByteArray, to_bytes
from elasticmoe.errors import CheckpointError

_BLOCK_BYTES: Final = 4 << 20
_HEADER_ALIGN: Final = 64


def step_directory(step: int) -> str:
    """Name of a checkpoint's directory in its store."""
    return f"step-{step:08d}"


def write_part(
    store: Store,
    step: int,
    writer: str,
    tensors: Iterable[tuple[str, torch.Tensor | np.ndarray[Any, Any] | memoryview]],
) -> list[dict[str, Any]]:
    """Write one worker's arrays as one durable safetensors file.

    Runs well on a background thread: copying, hashing and writing happen in pieces of up to
    4 MiB without the interpreter lock. The arrays must not change until it returns.

    Args:
        writer: unique among the writers of this step in all generations, for instance `g3-w1`.

    Returns:
        Manifest rows as plain data, for `manifest.file_row`.

    Raises:
        StorageError: the store is full, read-only or out of reach.
        ValueError: an array of a type that cannot be stored, or a name twice.
    """
    arrays = [_Array(name, *to_bytes(value)) for name, value in tensors]
    arrays.sort(key=lambda array: -array.item_bytes)  # so that each starts at its own alignment
    header = _header(arrays)
    name = f"{writer}.safetensors"
    num_bytes = len(header) + sum(len(array.data) for array in arrays)
    rows: list[TensorRow] = []
    offset = len(header)
    with store.writing(f"{step_directory(step)}/{name}", num_bytes) as write:
        blocks = _Blocks(write)
        blocks.add(np.frombuffer(header, np.uint8))
        for array in arrays:
            size = len(array.data)
            digest = blocks.add(array.data)
            rows.append(TensorRow(array.name, array.dtype, array.shape, offset, size, digest))
            offset += size
        blocks.flush()
    return [FileRow(name, num_bytes, len(header), hash_bytes(header), tuple(rows)).to_plain()]


def seal(store: Store, manifest: Manifest) -> None:
    """Make a checkpoint exist: write its manifest, last and atomically.

    Afterwards files of the directory that the manifest does not name (of an earlier attempt at
    the same step) are removed.

    Raises:
        CheckpointError: a part is missing or short, or two parts hold the same array.
        StorageError: the manifest cannot be written.
    """
    directory = step_directory(manifest.step)
    present = store.entries(directory)
    for file in manifest.files:
        if present.get(file.name) != file.num_bytes:
            raise CheckpointError(
                f"{store.uri_of(directory)}/{file.name} has {present.get(file.name)} bytes, "
                f"its writer reported {file.num_bytes}; the checkpoint is not sealed"
            )
    check_unique(manifest)
    store.write_small(f"{directory}/{MANIFEST_NAME}", manifest.to_text().encode())
    for name in present.keys() - {file.name for file in manifest.files} - {MANIFEST_NAME}:
        store.delete_file(f"{directory}/{name}")


def delete_checkpoint(store: Store, step: int) -> None:
    """Remove a checkpoint, manifest first: half a deletion leaves no checkpoint, not a bad one."""
    store.delete_file(f"{step_directory(step)}/{MANIFEST_NAME}")
    store.delete_dir(step_directory(step))


def check_unique(manifest: Manifest) -> None:
    """Every array lies in one file only.

    Raises:
        CheckpointError: naming the array and two files.
    """
    seen: dict[str, str] = {}
    for file, tensor in manifest.rows():
        if tensor.name in seen:
            raise CheckpointError(
                f"step {manifest.step}: {tensor.name} is in {seen[tensor.name]} and {file.name}"
            )
        seen[tensor.name] = file.name


@dataclass(frozen=True, slots=True)
class _Array:
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: ByteArray

    @property
    def item_bytes(self) -> int:
        return len(self.data) // max(1, int(np.prod(self.shape)))


def _header(arrays: list[_Array]) -> bytes:
    """Source: the safetensors format: 8 bytes length, JSON padded with spaces, data."""
    entries: dict[str, Any] = {}
    start = 0
    for array in arrays:
        if array.name in entries:
            raise ValueError(f"{array.name} is given twice")
        end = start + len(array.data)
        entries[array.name] = {
            "dtype": array.dtype,
            "shape": array.shape,
            "data_offsets": (start, end),
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _HEADER_ALIGN)
    return len(text).to_bytes(8, "little") + text


class _Blocks:
    """Gathers bytes into large aligned blocks, and hashes them while they are in the cache."""

    def __init__(self, write: WriteBlock) -> None:
        self._write = write
        self._memory = memoryview(mmap.mmap(-1, _BLOCK_BYTES))  # at a page's start
        self._block = np.frombuffer(self._memory, np.uint8)
        self._filled = 0

    def add(self, data: ByteArray) -> str:
        """Append bytes; returns their xxh3_128."""
        hasher = xxhash.xxh3_128()
        for piece in self._pieces(data):
            here = self._block[self._filled : self._filled + len(piece)]
            np.copyto(here, piece)  # unlike slice assignment, without the interpreter lock
            hasher.update(here.data)
            self._filled += len(piece)
            if self._filled == _BLOCK_BYTES:
                self.flush()
        return hasher.hexdigest()

    def flush(self) -> None:
        """Write what was gathered, padded to whole disk blocks."""
        padded = self._filled + -self._filled % DIRECT_ALIGN
        self._write(self._memory[:padded])
        self._filled = 0

    def _pieces(self, data: ByteArray) -> Iterator[ByteArray]:
        start = 0
        while start < len(data):
            end = min(len(data), start + _BLOCK_BYTES - self._filled)
            yield data[start:end]
            start = end
