"""Find, verify and read checkpoints. Nothing is ever unpickled."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch

from elasticmoe.checkpoint.manifest import (
    MANIFEST_NAME,
    UNIT_PARTS,
    FileRow,
    Manifest,
    TensorRow,
    hash_bytes,
    unit_tensor,
)
from elasticmoe.checkpoint.store import FileReader, Store, open_store, split_query
from elasticmoe.checkpoint.tensors import from_bytes
from elasticmoe.checkpoint.write import check_unique, step_directory
from elasticmoe.errors import CheckpointError
from elasticmoe.plan.types import Inventory

_DIRECTORY: Final = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that does not verify."""

    step: int
    reason: str


class Checkpoint:
    """A sealed checkpoint. Every array is checked against its hash when it is read."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.manifest = manifest
        self._store = store
        self._directory = step_directory(manifest.step)
        self._open: dict[str, FileReader] = {}

    @property
    def uri(self) -> str:
        """Where it is; `open_checkpoint_at` takes it."""
        return self._store.uri_of(self._directory)

    @cached_property
    def rows(self) -> dict[str, tuple[FileRow, TensorRow]]:
        """Arrays by name."""
        return {tensor.name: (file, tensor) for file, tensor in self.manifest.rows()}

    def read(self, name: str) -> torch.Tensor:
        """One array. Over a private memory mapping if the store is local: copy what you keep.

        Raises:
            CheckpointError: it is not in the checkpoint, or its bytes are damaged.
        """
        if name not in self.rows:
            raise CheckpointError(f"{self.uri} holds no {name}")
        file, row = self.rows[name]
        data = self._file(file).read(row.offset, row.num_bytes)
        if hash_bytes(data) != row.hash:
            raise CheckpointError(f"{self.uri}/{file.name}: {name} is damaged (hash differs)")
        return from_bytes(row.dtype, row.shape, data)

    def read_unit(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Master weights, first and second moment of a unit, each [numel]; see `read`."""
        master, exp_avg, exp_avg_sq = (self.read(unit_tensor(index, part)) for part in UNIT_PARTS)
        return master, exp_avg, exp_avg_sq

    def verify(self) -> None:
        """Check every file's presence and size and every byte's hash.

        Raises:
            CheckpointError: naming the first file and array that is missing or damaged.
        """
        check_unique(self.manifest)
        for file in self.manifest.files:
            if hash_bytes(self._file(file).read(0, file.header_bytes)) != file.header_hash:
                raise CheckpointError(f"{self.uri}/{file.name}: its header is damaged")
            end = file.header_bytes
            for tensor in file.tensors:
                assert tensor.offset == end, "no byte lies outside of a hash"
                self.read(tensor.name)
                end += tensor.num_bytes

    def check_complete(self, inventory: Inventory) -> None:
        """Every unit of the model is there, whole.

        Raises:
            CheckpointError: naming what is missing, misshapen or unknown.
        """
        wanted = {
            unit_tensor(unit.index, part): (unit.numel,)
            for unit in inventory.units
            for part in UNIT_PARTS
        }
        found = {name: row.shape for name, (_, row) in self.rows.items() if name[:5] == "unit."}
        if found == wanted:
            return
        wrong = sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        )
        first = wrong[0]
        raise CheckpointError(
            f"{self.uri}: {len(wrong)} unit arrays do not fit the model; {first} has shape "
            f"{found.get(first, 'none')}, the model has {wanted.get(first, 'none')}"
        )

    def _file(self, file: FileRow) -> FileReader:
        if file.name not in self._open:
            where = f"{self.uri}/{file.name}"
            try:
                reader = self._store.open(f"{self._directory}/{file.name}")
            except FileNotFoundError:
                raise CheckpointError(f"{where} is missing") from None
            if reader.num_bytes != file.num_bytes:
                raise CheckpointError(
                    f"{where} has {reader.num_bytes:,} bytes, the manifest says {file.num_bytes:,}"
                )
            self._open[file.name] = reader
        return self._open[file.name]


def find_checkpoints(store: Store) -> list[int]:
    """Steps of the sealed checkpoints, ascending; whether they verify is another question."""
    steps = [int(found[1]) for name in store.entries() if (found := _DIRECTORY.fullmatch(name))]
    return sorted(step for step in steps if MANIFEST_NAME in store.entries(step_directory(step)))


def open_checkpoint(store: Store, step: int) -> Checkpoint:
    """Open a checkpoint by its manifest; arrays are verified as they are read.

    Raises:
        CheckpointError: there is none, or its manifest is damaged.
    """
    name = f"{step_directory(step)}/{MANIFEST_NAME}"
    try:
        text = store.read_small(name).decode()
    except FileNotFoundError:
        raise CheckpointError(
            f"{store.uri} holds no checkpoint of step {step}; "
            f"it has {find_checkpoints(store) or 'none'}"
        ) from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{store.uri_of(name)}: the manifest is damaged: {error}") from None
    try:
        manifest = Manifest.from_text(text)
    except CheckpointError as error:
        raise CheckpointError(f"{store.uri_of(name)}: {error}") from None
    if manifest.step != step:
        raise CheckpointError(f"{store.uri_of(name)} is the manifest of step {manifest.step}")
    return Checkpoint(store, manifest)


def open_checkpoint_at(uri: str) -> Checkpoint:
    """Open a checkpoint by the URI or path of its own directory (`.../step-00000200`).

    Raises:
        CheckpointError: this is no checkpoint directory.
    """
    base, query = split_query(uri)
    root, _, name = base.rpartition("/")
    found = _DIRECTORY.fullmatch(name)
    if not found:
        raise CheckpointError(f"{uri} is not a checkpoint directory (step-NNNNNNNN)")
    return open_checkpoint(open_store((root or ".") + query), int(found[1]))


def newest_valid(store: Store) -> tuple[Checkpoint | None, tuple[Skipped, ...]]:
    """The newest checkpoint that verifies, and the newer ones that do not, with the reason.

    A store that cannot be read at all is no reason to skip: going back further than needed, or
    to the very beginning, would lose steps that are safe.

    Raises:
        StorageError: the store is out of reach.
    """
    skipped: list[Skipped] = []
    for step in reversed(find_checkpoints(store)):
        try:
            return open_verified(store, step), tuple(skipped)
        except CheckpointError as error:
            skipped.append(Skipped(step, str(error)))
    return None, tuple(skipped)


def open_verified(store: Store, step: int | None = None) -> Checkpoint:
    """Open a checkpoint whose every byte verifies; without a step the newest such.

    Raises:
        CheckpointError: it is missing or damaged; without a step, why each one was skipped.
    """
    if step is not None:
        checkpoint = open_checkpoint(store, step)
        checkpoint.verify()
        return checkpoint
    newest, skipped = newest_valid(store)
    if newest is None:
        reasons = "".join(f"\n  step {bad.step}: {bad.reason}" for bad in skipped)
        raise CheckpointError(f"{store.uri} holds no valid checkpoint{reasons}")
    return newest
