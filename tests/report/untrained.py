"""A job whose checkpoint holds an untrained model."""

from pathlib import Path

import torch

from elasticmoe.checkpoint.manifest import Manifest, digest_inventory, file_row, unit_tensor
from elasticmoe.checkpoint.read import Checkpoint, open_verified
from elasticmoe.checkpoint.store import open_store
from elasticmoe.checkpoint.write import seal, write_part
from elasticmoe.model.initialize import initial_unit
from elasticmoe.model.inventory import build_inventory
from elasticmoe.runtime.pack import pack
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data

TEXT = "the quick brown fox jumps over the lazy dog\n"


def build_job(root: Path) -> JobSpec:
    """A tiny model and a packed corpus in a directory."""
    text = root / "text.txt"
    text.write_text(TEXT * 500)
    pack([text], root / "data")
    return parse_data(
        {
            "version": 1,
            "name": "tiny",
            "model": {
                "vocab_size": 256,
                "hidden_size": 16,
                "num_layers": 2,
                "first_dense_layers": 1,
                "dense_hidden_size": 16,
                "attention": {"kind": "gqa", "num_heads": 2},
                "moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 16},
                "mtp_depth": 1,
            },
            "data": {"sources": [{"path": str(root / "data")}], "seq_len": 16},
            "batch": {"global_samples": 8},
            "optimizer": {"learning_rate": 1e-2},
            "schedule": {"steps": 10},
            "workers": {"replicas": 2, "min": 1, "max": 2, "device": "cpu"},
            "storage": {"dir": str(root / "run")},
        }
    )


def write_untrained(job: JobSpec) -> Checkpoint:
    """A checkpoint of step 0 with initial weights."""
    inventory = build_inventory(job.model, job.data.seq_len)
    shape = (len(inventory.moe_blocks), job.model.moe.num_experts)
    tensors = [("bias", torch.zeros(shape)), ("running", torch.zeros(shape))]
    for unit in inventory.units:
        master = initial_unit(job.model, inventory, unit, job.data.seed, torch.float32)
        tensors.append((unit_tensor(unit.index, "master"), master))
        for part in ("exp_avg", "exp_avg_sq"):
            tensors.append((unit_tensor(unit.index, part), torch.zeros(unit.numel)))
    store = open_store(f"{job.storage.dir}/checkpoints")
    rows = write_part(store, 0, "g1-m0", tensors)
    manifest = Manifest(
        job=job.name,
        step=0,
        timeline=0,
        generation=1,
        model=job.model.model_dump(mode="json"),
        inventory=digest_inventory(inventory),
        data="",
        global_samples=job.batch.global_samples,
        seed=job.data.seed,
        files=tuple(file_row(row) for row in rows),
        state={"step": 0, "updates": 0},
    )
    seal(store, manifest)
    return open_verified(store)
