"""What a checkpoint consists of: written last, read first, the only proof that it is whole.

A checkpoint is a directory of a few safetensors files and `manifest.json`. Tensors are named
`unit.17.master`, `unit.17.exp_avg`, `unit.17.exp_avg_sq`, `bias`, ...; everything that is not an
array lies in the manifest's `state`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import xxhash

from elasticmoe.errors import CheckpointError
from elasticmoe.plan.types import Inventory
from elasticmoe.spec.job import JobSpec

FORMAT: Final = 1
MANIFEST_NAME: Final = "manifest.json"
UNIT_PARTS: Final = ("master", "exp_avg", "exp_avg_sq")
"""The arrays of one unit, each [numel]."""

_HARMLESS_MODEL_FIELDS: Final = ("model.preset", "model.recompute_layers")
"""A changed label or memory saving leaves the network the same."""


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One array in a file."""

    name: str
    dtype: str
    """As safetensors spells it: `F32`, `BF16`, `I64`, ..."""
    shape: tuple[int, ...]
    offset: int
    """First byte, from the start of the file."""
    num_bytes: int
    hash: str
    """xxh3_128 of the bytes."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """One packed file, as its writer measured it."""

    name: str
    num_bytes: int
    header_bytes: int
    """Bytes before the first array: safetensors' length field and header."""
    header_hash: str
    tensors: tuple[TensorRow, ...]

    def to_plain(self) -> dict[str, Any]:
        """Plain data; `file_row` is its inverse."""
        return {**_fields(self), "tensors": [_fields(tensor) for tensor in self.tensors]}


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checkpoint: whose it is, what it holds, and everything about it that is not an array."""

    job: str
    step: int
    timeline: int
    """Counts the rollbacks of the job."""
    generation: int
    """Of the gang that wrote it."""
    model: Mapping[str, Any]
    """`ModelSpec` as plain data."""
    inventory: str
    """`digest_inventory` of the model's units."""
    data: str
    """`SampleReader.digest`; empty: any data will do (imported weights)."""
    global_samples: int
    seed: int
    files: tuple[FileRow, ...]
    state: Mapping[str, Any] = field(default_factory=dict)
    """Scalars: exact floats, integers, strings, and lists and dicts of them."""
    format: int = FORMAT

    @property
    def num_bytes(self) -> int:
        """Size of all packed files."""
        return sum(file.num_bytes for file in self.files)

    def rows(self) -> Iterator[tuple[FileRow, TensorRow]]:
        """Every array with the file it lies in."""
        return ((file, tensor) for file in self.files for tensor in file.tensors)

    def to_text(self) -> str:
        """The manifest file's text; it ends with a hash of itself."""
        plain = {**_fields(self), "files": [file.to_plain() for file in self.files]}
        body = json.dumps(plain, separators=(",", ":"))
        return f'{{"manifest":{body},\n"hash":"{_hash(body)}"}}\n'

    @classmethod
    def from_text(cls, text: str) -> "Manifest":
        """Inverse of `to_text`.

        Raises:
            CheckpointError: the text is damaged, or of a format this version does not read.
        """
        try:
            manifest = cls._from_plain(json.loads(text)["manifest"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the manifest is damaged: {error!r}") from None
        if manifest.format != FORMAT:
            raise CheckpointError(
                f"the manifest has format {manifest.format}, this version reads {FORMAT}. "
                "Use the version of elasticmoe that wrote it."
            )
        if manifest.to_text() != text:
            raise CheckpointError("the manifest is damaged: its hash does not match its text")
        return manifest

    @classmethod
    def _from_plain(cls, plain: Mapping[str, Any]) -> "Manifest":
        return cls(**{**plain, "files": tuple(file_row(file) for file in plain["files"])})


def file_row(plain: Mapping[str, Any]) -> FileRow:
    """Rebuild a row from the plain data that `write_part` returns, also after JSON."""
    tensors = tuple(
        TensorRow(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in plain["tensors"]
    )
    return FileRow(**{**plain, "tensors": tensors})


def unit_tensor(index: int, part: str) -> str:
    """Name of one array of a unit; `part` is one of `UNIT_PARTS`."""
    return f"unit.{index}.{part}"


def digest_inventory(inventory: Inventory) -> str:
    """Hash of what decides where a parameter lies in which unit, and nothing else."""
    costless = [
        asdict(replace(block, flops_per_token=0.0, activation_bytes_per_token=0.0))
        for block in inventory.blocks
    ]
    units = [asdict(unit) for unit in inventory.units]
    text = json.dumps([costless, units], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_same_model(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another network.

    Args:
        saved: the manifest's `model`.
        asked: `ModelSpec` as plain data.

    Raises:
        CheckpointError: they differ; the message lists each field with both values.
    """
    then, now = dict(_leaves("model", saved)), dict(_leaves("model", asked))
    lines = [
        f"  {name}: the checkpoint has {_show(then, name)}, the job asks for {_show(now, name)}"
        for name in sorted(then.keys() | now.keys())
        if not name.startswith(_HARMLESS_MODEL_FIELDS) and _show(then, name) != _show(now, name)
    ]
    if lines:
        raise CheckpointError(
            "the checkpoint is of another model:\n"
            + "\n".join(lines)
            + "\nUndo the change, or choose another storage.dir."
        )


def check_resumable(
    manifest: Manifest, job: JobSpec, data_digest: str, inventory_digest: str | None = None
) -> None:
    """Refuse to continue with a changed model, data or batch.

    Args:
        data_digest: `SampleReader.digest` of the job's training data.
        inventory_digest: `digest_inventory` of the model as this version cuts it, if known.

    Raises:
        CheckpointError: what differs, with both values.
    """
    check_same_model(manifest.model, job.model.model_dump(mode="json"))
    if inventory_digest not in (None, manifest.inventory):
        raise CheckpointError(
            f"this version cuts the same model into other units (inventory {inventory_digest}) "
            f"than the one that wrote the checkpoint ({manifest.inventory}). "
            "Export with the old version and import with this one."
        )
    if not manifest.data:  # imported weights were never trained on this job's samples
        return
    if manifest.seed != job.data.seed:
        raise CheckpointError(
            f"the checkpoint was trained with data.seed {manifest.seed}, the job asks for "
            f"{job.data.seed}: samples would repeat or be missed."
        )
    if manifest.data != data_digest:
        raise CheckpointError(
            f"the training data changed: the checkpoint knows {manifest.data}, the sources, "
            f"weights and seq_len of the job give {data_digest}. Samples would repeat or be "
            "missed: restore the data, or choose another storage.dir."
        )
    if manifest.global_samples != job.batch.global_samples:
        raise CheckpointError(
            f"the checkpoint was trained with batch.global_samples {manifest.global_samples}, "
            f"the job asks for {job.batch.global_samples}; step numbers would mean other samples."
        )


def hash_bytes(data: Any) -> str:
    """xxh3_128 of any contiguous buffer: several GB/s, so that hashing never limits a disk."""
    return xxhash.xxh3_128_hexdigest(data)


def _hash(text: str) -> str:
    return hash_bytes(text.encode())


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}  # asdict is ten times slower


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}", item)
    else:
        yield path, value


def _show(leaves: Mapping[str, Any], name: str) -> str:
    return json.dumps(leaves[name]) if name in leaves else "nothing"
