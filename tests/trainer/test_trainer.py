"""The Python faces, from a job to its result: real workers, a real model, few steps."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray.train

import elasticmoe
from elasticmoe.errors import JobFailedError, SpecError
from elasticmoe.runtime.pack import pack
from elasticmoe.trainer import ElasticMoETrainer


def _job(root: Path) -> dict[str, Any]:
    text = root / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 500)
    pack([text], root / "data")
    return {
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
        },
        "data": {"sources": [{"path": str(root / "data")}], "seq_len": 16},
        "batch": {"global_samples": 8},
        "optimizer": {"learning_rate": 1e-2},
        "schedule": {"steps": 10},
        "parallel": {"stages": 2},
        "workers": {"replicas": 2, "min": 1, "max": 2, "device": "cpu"},
        "storage": {"dir": str(root / "run")},
    }


@pytest.mark.ray
def test_train_returns_when_all_steps_are_committed(tmp_path: Path) -> None:
    seen: list[int] = []

    summary = elasticmoe.train(
        _job(tmp_path),
        watch=lambda event: seen.append(event.fields["step"]) if event.kind == "step" else None,
    )

    assert summary.outcome == "done"
    assert seen == list(range(1, 11))
    assert summary.steps == 10
    assert summary.bits_per_byte is not None
    assert summary.bits_per_byte < 8.0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.ray
def test_fit_returns_rays_result(tmp_path: Path) -> None:
    trainer = ElasticMoETrainer(
        _job(tmp_path),
        scaling_config=ray.train.ScalingConfig(num_workers=(1, 2)),
        run_config=ray.train.RunConfig(name="first", storage_path=str(tmp_path / "runs")),
    )

    result = trainer.fit()

    assert result.error is None
    assert result.metrics is not None
    assert result.metrics["steps"] == 10
    assert result.path == str(tmp_path / "runs" / "first")
    assert result.checkpoint is not None
    assert (Path(result.checkpoint.path) / "manifest.json").exists()
    assert result.metrics_dataframe is not None
    assert list(result.metrics_dataframe["step"]) == list(range(1, 11))


@pytest.mark.ray
def test_a_job_that_cannot_train_raises_with_the_reason_and_the_logs_place(tmp_path: Path) -> None:
    job = _job(tmp_path)
    job["model"]["moe"]["router"] = "failing_router:FailingRouter"

    with pytest.raises(JobFailedError, match=r"(?s)this router always fails.*logs"):
        elasticmoe.train(job)

    assert json.loads((tmp_path / "run" / "summary.json").read_text())["outcome"] == "failed"


@pytest.mark.ray
def test_a_job_whose_router_does_not_exist_is_refused_in_one_line(tmp_path: Path) -> None:
    job = _job(tmp_path)
    job["model"]["moe"]["router"] = "no_such_module:Router"

    with pytest.raises(SpecError, match="no_such_module") as caught:
        elasticmoe.train(job)

    assert len(str(caught.value).splitlines()) == 1


def test_a_scaling_config_replaces_what_the_job_says(tmp_path: Path) -> None:
    scaling = ray.train.ScalingConfig(num_workers=(2, 6), use_gpu=True)

    job = ElasticMoETrainer(_job(tmp_path), scaling_config=scaling).job

    assert (job.workers.min, job.workers.replicas, job.workers.max) == (2, 6, 6)
    assert job.workers.device == "cuda"


def test_a_scaling_config_that_a_job_cannot_have_is_refused(tmp_path: Path) -> None:
    scaling = ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 3})

    with pytest.raises(SpecError, match="resources_per_worker"):
        ElasticMoETrainer(_job(tmp_path), scaling_config=scaling)


def test_a_job_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.toml"):
        elasticmoe.train(tmp_path / "none.toml")
