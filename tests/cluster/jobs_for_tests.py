"""A small valid job for the tests of the cluster."""

import json
from pathlib import Path

from elasticmoe.runtime.pack import pack
from elasticmoe.spec.job import JobSpec


def tiny_job(storage: Path, *, steps: int = 1000, replicas: int = 2) -> JobSpec:
    """A job whose model is as small as the spec allows."""
    text = storage.parent / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    pack([text], storage.parent / "data")
    plain = {
        "version": 1,
        "name": "tiny",
        "model": {
            "vocab_size": 257,
            "hidden_size": 16,
            "num_layers": 2,
            "dense_hidden_size": 16,
            "attention": {"kind": "gqa", "num_heads": 2},
            "moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 16},
        },
        "data": {"sources": [{"path": str(storage.parent / "data")}], "seq_len": 8},
        "batch": {"global_samples": 8},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"steps": steps},
        "workers": {"replicas": replicas, "min": 1, "max": 8},
        "storage": {"dir": str(storage)},
    }
    return JobSpec.model_validate_json(json.dumps(plain))
