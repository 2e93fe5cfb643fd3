"""A small job with packed text and a checkpoint of its initial weights."""

from pathlib import Path

import torch

from elasticmoe.checkpoint.manifest import Manifest, digest_inventory, file_row
from elasticmoe.checkpoint.write import seal, write_part
from elasticmoe.model.initialize import initial_unit
from elasticmoe.model.inventory import build_inventory
from elasticmoe.report.job_dir import checkpoint_store
from elasticmoe.runtime.pack import pack
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data


def small_job(folder: Path) -> JobSpec:
    """A DeepSeek-V3-style job over packed text in `folder`."""
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    pack([text], folder / "data", holdout=0.1)
    return parse_data(
        {
            "version": 1,
            "name": "small",
            "model": {
                "preset": "quickstart",
                "hidden_size": 32,
                "dense_hidden_size": 32,
                "num_layers": 2,
                "moe": {"expert_hidden_size": 16},
            },
            "data": {"sources": [{"path": str(folder / "data")}], "seq_len": 32},
            "batch": {"global_samples": 4},
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"steps": 4},
            "workers": {"replicas": 1, "min": 1, "max": 1},
            "storage": {"dir": str(folder / "run")},
        }
    )


def save_initial(job: JobSpec, step: int = 4) -> None:
    """Seal a checkpoint of the job's initial weights as one of a step."""
    inventory = build_inventory(job.model, job.data.seq_len)
    tensors: list[tuple[str, torch.Tensor]] = []
    for unit in inventory.units:
        master = initial_unit(job.model, inventory, unit, 0, torch.float32)
        tensors.append((f"unit.{unit.index}.master", master))
        for part in ("exp_avg", "exp_avg_sq"):
            tensors.append((f"unit.{unit.index}.{part}", torch.zeros(unit.numel)))
    shape = (len(inventory.moe_blocks), job.model.moe.num_experts)
    tensors.append(("bias", torch.linspace(-0.1, 0.1, shape[0] * shape[1]).view(shape)))
    tensors.append(("running", torch.zeros(shape, dtype=torch.float64)))
    store = checkpoint_store(job)
    files = write_part(store, step, "w0", tensors)
    seal(
        store,
        Manifest(
            job=job.name,
            step=step,
            timeline=0,
            generation=1,
            model=job.model.model_dump(mode="json"),
            inventory=digest_inventory(inventory),
            data="of the test",
            global_samples=4,
            seed=0,
            files=tuple(map(file_row, files)),
            state={"step": step, "updates": step},
        ),
    )
