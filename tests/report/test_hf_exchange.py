import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from trained_job import save_initial, small_job

from elasticmoe.checkpoint.read import open_verified
from elasticmoe.errors import CheckpointError, SpecError
from elasticmoe.report.exchange import export_checkpoint, import_checkpoint, model_table
from elasticmoe.report.job_dir import checkpoint_store
from elasticmoe.spec.job import JobSpec


def _elsewhere(job: JobSpec, folder: Path) -> JobSpec:
    storage = job.storage.model_copy(update={"dir": str(folder)})
    return job.model_copy(update={"storage": storage})


def test_an_exported_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    save_initial(job)

    step, _ = export_checkpoint(job, tmp_path / "run", tmp_path / "hf")
    again = _elsewhere(job, tmp_path / "again")
    import_checkpoint(tmp_path / "hf", again)

    before, after = (open_verified(checkpoint_store(one)) for one in (job, again))
    names = [name for name in before.rows if name.endswith("master") or name == "bias"]
    assert (step, after.manifest.step) == (4, 0)
    assert len(names) > 10
    assert [name for name in names if not torch.equal(before.read(name), after.read(name))] == []


def test_transformers_loads_what_was_exported(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    job = small_job(tmp_path)
    save_initial(job)

    export_checkpoint(job, tmp_path / "run", tmp_path / "hf")

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(model).__name__ == "DeepseekV3ForCausalLM"


def test_the_model_of_a_checkpoint_is_printed_as_toml(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    save_initial(job)
    export_checkpoint(job, tmp_path / "run", tmp_path / "hf")

    table = tomllib.loads(model_table(tmp_path / "hf"))["model"]

    assert table["moe"]["num_experts"] == 16
    assert table["attention"]["kind"] == "mla"


def test_weights_of_another_model_are_refused_with_the_difference(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    save_initial(job)
    export_checkpoint(job, tmp_path / "run", tmp_path / "hf")
    model = job.model.model_copy(update={"hidden_size": 64})
    wider = _elsewhere(job.model_copy(update={"model": model}), tmp_path / "again")

    with pytest.raises(CheckpointError, match=r"hidden_size: the checkpoint has 32, .* 64"):
        import_checkpoint(tmp_path / "hf", wider)


def test_an_unknown_model_is_refused_by_its_name(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    save_initial(job)
    export_checkpoint(job, tmp_path / "run", tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "gpt2"}))

    with pytest.raises(SpecError, match="'gpt2' is not one of deepseek_v3"):
        import_checkpoint(tmp_path / "hf", _elsewhere(job, tmp_path / "again"))


def test_a_job_that_has_checkpoints_is_not_overwritten(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    save_initial(job)
    export_checkpoint(job, tmp_path / "run", tmp_path / "hf")

    with pytest.raises(CheckpointError, match="holds checkpoints already"):
        import_checkpoint(tmp_path / "hf", job)

    shutil.rmtree(tmp_path / "run")
    assert import_checkpoint(tmp_path / "hf", job).endswith("step-00000000")
