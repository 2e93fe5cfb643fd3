"""The jobs that suffer: a tiny one that ships, or anybody's."""

import json
from pathlib import Path
from typing import Any

from chaos.scenario import Scenario
from elasticmoe.errors import SpecError
from elasticmoe.job_file import read_job
from elasticmoe.runtime.pack import pack
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data

_TEXT = "".join(
    f"{number} green bottles hanging on the wall, and if {number % 7} of them should fall\n"
    for number in range(400)
)
FOREVER = 1_000_000
"""Steps of a job that is asked to stop."""


def make_job(scenario: Scenario, job_dir: Path, checkpoints: Path | None = None) -> JobSpec:
    """The scenario's job, to live in a directory.

    Args:
        checkpoints: where they go; none: into the job's directory.

    Raises:
        SpecError: it is no valid job.
    """
    places = [f"storage.dir={json.dumps(str(job_dir))}"]
    if checkpoints is not None:
        places.append(f"storage.checkpoints={json.dumps(str(checkpoints))}")
    overrides = (*scenario.job.set, *places)
    if scenario.job.path is not None:
        job = read_job(Path(scenario.job.path), overrides)
    else:
        job = parse_data(_tiny(job_dir.parent / "data", scenario), overrides)
    if scenario.job.end == "stop" and job.schedule.kind != "constant":
        raise SpecError(
            (
                'job.end = "stop" needs schedule.kind = "constant": the learning rate of the other '
                "kinds depends on the last step, so that no undisturbed run could be compared",
            )
        )
    return job


def reference_of(job: JobSpec, steps: int, job_dir: Path) -> JobSpec:
    """The same job for an undisturbed run that ends at a step."""
    return job.model_copy(
        update={
            "schedule": job.schedule.model_copy(update={"steps": steps}),
            "storage": job.storage.model_copy(update={"dir": str(job_dir), "checkpoints": None}),
            "checkpoint": job.checkpoint.model_copy(update={"interval_steps": steps}),
        }
    )


def _tiny(data: Path, scenario: Scenario) -> dict[str, Any]:
    """Two stages of two workers; four layers, two of them with experts."""
    if not (data / "dataset.json").exists():
        data.parent.mkdir(parents=True, exist_ok=True)
        text = data.with_suffix(".txt")
        text.write_text(_TEXT)
        pack([text], data)
    workers = 4
    if scenario.cluster is not None:
        workers = scenario.cluster.workers * len(scenario.cluster.nodes)
    return {
        "version": 1,
        "name": "victim",
        "model": {
            "vocab_size": 257,
            "hidden_size": 32,
            "num_layers": 4,
            "dense_hidden_size": 32,
            "attention": {"kind": "gqa", "num_heads": 2},
            "moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 32},
        },
        "data": {"sources": [{"path": str(data)}], "seq_len": 16},
        "batch": {"global_samples": 8, "num_waves": 2},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"steps": FOREVER, "kind": "constant"},
        "parallel": {"stages": 2},
        "workers": {"replicas": workers, "min": 1, "max": workers, "settle_s": 0.2},
        "protection": {"hash_interval_steps": 10},
        "checkpoint": {"interval_steps": 50, "keep": 3},
        "storage": {"dir": "replaced"},
    }
