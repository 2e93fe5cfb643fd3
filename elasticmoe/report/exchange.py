"""Checkpoints to Hugging Face's format and back."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from elasticmoe.checkpoint.manifest import (
    Manifest,
    check_same_model,
    digest_inventory,
    file_row,
)
from elasticmoe.checkpoint.read import find_checkpoints, open_verified
from elasticmoe.checkpoint.unpack import read_parameter, units_from_parameters
from elasticmoe.checkpoint.write import seal, step_directory, write_part
from elasticmoe.errors import CheckpointError
from elasticmoe.model.hf import (
    HFCheckpoint,
    bias_from_hf,
    parameters_from_hf,
    spec_from_hf,
    to_hf,
    write_hf,
)
from elasticmoe.model.inventory import build_inventory
from elasticmoe.report.job_dir import checkpoint_store
from elasticmoe.runtime.dataset import TOKENIZER_NAME
from elasticmoe.runtime.memory import MASTER_DTYPE
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.model import ModelSpec

_NOT_IN_WEIGHTS = ("preset", "precision", "recompute_layers", "mtp_loss_weight", "init_std")
"""Fields of a model that its weights do not depend on."""


def export_checkpoint(
    job: JobSpec, job_dir: Path, out: Path, *, dtype: str = "float32", step: int | None = None
) -> tuple[int, list[Path]]:
    """Write a checkpoint as Hugging Face files, with the corpus' tokenizer if it has a file.

    Args:
        dtype: of the weights, as torch names it.
        step: of the checkpoint; none: the newest that verifies.

    Returns:
        The step, and the files written.

    Raises:
        CheckpointError: there is no valid checkpoint.
        SpecError: no Hugging Face model computes what this one does; says why.
    """
    checkpoint = open_verified(checkpoint_store(job, job_dir), step)
    model = ModelSpec.model_validate_json(json.dumps(checkpoint.manifest.model))
    inventory = build_inventory(model, seq_len=1)

    def read(block: str, parameter: str, expert: int) -> torch.Tensor:
        return read_parameter(checkpoint, inventory, block, parameter, expert)

    config, tensors = to_hf(
        model,
        read,
        checkpoint.read("bias"),
        max_positions=job.data.seq_len,
        dtype=getattr(torch, dtype),
    )
    files = write_hf(out, config, tensors)
    tokenizer = Path(job.data.sources[0].path) / TOKENIZER_NAME
    if tokenizer.is_file():
        shutil.copyfile(tokenizer, out / TOKENIZER_NAME)
        files.append(out / TOKENIZER_NAME)
    return checkpoint.manifest.step, files


def import_checkpoint(source: Path, job: JobSpec) -> str:
    """Make Hugging Face weights the checkpoint of step 0 of a job that has none yet.

    Returns:
        The checkpoint's URI.

    Raises:
        SpecError: the family is unknown, or uses what a model here cannot express.
        CheckpointError: this is no checkpoint, the job's model is another one, or the job has
            checkpoints already.
    """
    found = HFCheckpoint(source)
    theirs = _weights_alone(spec_from_hf(found.config, found.names))
    check_same_model(theirs, _weights_alone(job.model))
    store = checkpoint_store(job)
    if known := find_checkpoints(store):
        raise CheckpointError(
            f"{store.uri} holds checkpoints already (step {known[-1]} is the newest); import "
            "into another storage.dir"
        )
    store.check_usable()
    inventory = build_inventory(job.model, job.data.seq_len)
    dtype = MASTER_DTYPE[job.model.precision]
    bias_LE = bias_from_hf(job.model, found.read).to(dtype)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        parameters = (
            (one.block, one.parameter, one.expert, one.value)
            for one in parameters_from_hf(job.model, found.read)
        )
        yield from units_from_parameters(inventory, parameters, dtype)
        yield "bias", bias_LE
        yield "running", torch.zeros(bias_LE.shape, dtype=torch.float64)

    files = write_part(store, 0, "imported", tensors())
    manifest = Manifest(
        job=job.name,
        step=0,
        timeline=0,
        generation=0,
        model=job.model.model_dump(mode="json"),
        inventory=digest_inventory(inventory),
        data="",
        global_samples=job.batch.global_samples,
        seed=job.data.seed,
        files=tuple(map(file_row, files)),
        state={"step": 0, "updates": 0},
    )
    seal(store, manifest)
    return store.uri_of(step_directory(0))


def model_table(source: Path) -> str:
    """The `[model]` table of a job that starts from a Hugging Face checkpoint.

    Raises:
        SpecError, CheckpointError: see `import_checkpoint`.
    """
    found = HFCheckpoint(source)
    spec = spec_from_hf(found.config, found.names)
    plain = spec.model_dump(mode="json", exclude_defaults=True) | {"preset": "custom"}
    return "\n".join(_toml("model", plain))


def _toml(name: str, table: Mapping[str, Any]) -> Iterator[str]:
    yield f"[{name}]"
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{key} = {json.dumps(value)}"  # JSON's numbers, strings, true are TOML's too
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _toml(f"{name}.{key}", value)


def _weights_alone(model: ModelSpec) -> dict[str, Any]:
    plain = model.model_dump(mode="json")
    return {name: value for name, value in plain.items() if name not in _NOT_IN_WEIGHTS}
