"""What can be done with a job's directory from the command line: no Ray, an untrained model."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from elasticmoe.cli import main
from elasticmoe.cluster.journal_file import FileJournal
from elasticmoe.controller.record import Record
from elasticmoe.messages.events import JobSubmitted
from elasticmoe.spec.load import to_data
from tests.report.trained_job import save_initial, small_job

Say = Callable[..., tuple[int, str]]


@pytest.fixture
def job_dir(tmp_path: Path) -> Path:
    job = small_job(tmp_path)
    journal = FileJournal(tmp_path / "run" / "journal", run="1")
    journal.append(Record(0, JobSubmitted(1.0, to_data(job), {}, [])))
    journal.close()
    save_initial(job)
    return tmp_path / "run"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        code = left.value.code
        said = capsys.readouterr()
        return (code if isinstance(code, int) else 0), said.out + said.err

    return run


def test_checkpoints_are_listed_and_verified(say: Say, job_dir: Path) -> None:
    listed = say("checkpoint", "list", job_dir)
    verified = say("checkpoint", "verify", job_dir)

    assert listed[0] == verified[0] == 0
    assert "step        4" in listed[1]
    assert "1 files  generation 1" in listed[1]
    assert "step        4  good, " in verified[1]


def test_a_damaged_checkpoint_is_told_and_gives_exit_code_1(say: Say, job_dir: Path) -> None:
    (part,) = (job_dir / "checkpoints" / "step-00000004").glob("*.safetensors")
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)

    code, said = say("checkpoint", "verify", job_dir)

    assert code == 1
    assert "step        4  DAMAGED: " in said
    assert part.name in said


def test_a_model_writes_the_text_that_its_seed_gives(say: Say, job_dir: Path) -> None:
    arguments = ("generate", job_dir, "--prompt", "the ", "--tokens", 8, "--seed", 3)

    code, text = say(*arguments)

    assert code == 0
    assert text.startswith("the ")
    assert len(text) > len("the \n")
    assert say(*arguments) == (0, text)


def test_a_model_goes_out_and_comes_back_as_another_jobs_first_checkpoint(
    say: Say, job_dir: Path, tmp_path: Path
) -> None:
    exported = say("export", job_dir, tmp_path / "hf")
    printed = say("import", tmp_path / "hf")
    (tmp_path / "again.toml").write_text(_as_toml(printed[1], tmp_path))
    imported = say("import", tmp_path / "hf", tmp_path / "again.toml")

    assert exported[0] == printed[0] == imported[0] == 0, (exported, printed, imported)
    assert "the model of step 4 as config.json" in exported[1]
    assert tomllib.loads(printed[1])["model"]["moe"]["num_experts"] == 16
    assert "starts from it" in imported[1]
    assert (tmp_path / "again" / "checkpoints" / "step-00000000" / "manifest.json").exists()


def test_the_story_of_a_job_begins_with_what_was_asked_for(say: Say, job_dir: Path) -> None:
    code, said = say("story", job_dir)

    assert code == 0
    assert "job small: 4 steps on 1 worker (1 at least)" in said


def _as_toml(model: str, root: Path) -> str:
    return f"""
version = 1
name = "again"
data = {{ sources = [{{ path = "{root / "data"}" }}], seq_len = 32 }}
batch = {{ global_samples = 4 }}
optimizer = {{ learning_rate = 1e-2 }}
schedule = {{ steps = 10 }}
workers = {{ replicas = 1, min = 1, max = 1 }}
storage = {{ dir = "{root / "again"}" }}
{model}
"""
