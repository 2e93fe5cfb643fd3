import json
import subprocess
import sys
from pathlib import Path

import pytest

from elasticmoe.cli import main
from elasticmoe.version import VERSION

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "examples" / "quickstart.toml")


def _run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    code = left.value.code
    return code if isinstance(code, int) else 0


def test_the_command_line_starts_without_anything_heavy() -> None:
    text = "import sys, elasticmoe.cli; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()

    assert {"torch", "ray", "pyarrow", "matplotlib", "numpy"} & set(loaded) == set()


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code = _run("version")

    assert (code, capsys.readouterr().out) == (0, f"{VERSION}\n")


def test_a_mistake_in_a_job_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = _run("train", QUICKSTART, "--set", "batch.num_waves=5")

    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("error: ")
    assert "multiple" in err
    assert "Traceback" not in err


def test_a_job_whose_text_was_not_packed_says_how_to_pack_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    code = _run("train", QUICKSTART)

    assert code == 2
    assert "elasticmoe data pack --stdlib --out data/stdlib" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_job_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    code = _run("plan", "nowhere.toml")

    assert code == 2
    assert capsys.readouterr().err == (
        "error: nowhere.toml cannot be read: No such file or directory\n"
    )


def test_plan_describes_a_layout_without_starting_anything(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = _run("plan", QUICKSTART, "--workers", "6", "--nodes", "3")

    out = capsys.readouterr().out
    assert code == 0
    assert "6 workers on 3 nodes in 3 failure domains, 2 stages" in out
    assert "memory of the fullest worker" in out


def test_the_671b_geometry_is_planned_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    model = "model={preset='deepseek-v3', mtp_depth=0}"
    preset = ("--set", model, "--set", "parallel.stages=16")

    code = _run("plan", QUICKSTART, *preset, "--workers", "256", "--nodes", "32")

    out = capsys.readouterr().out
    assert code == 0
    assert "671 G parameters, 37.6 G active per token" in out
    assert "256 workers on 32 nodes" in out


def test_packing_text_writes_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("hello world\n" * 100)

    code = _run("data", "pack", str(tmp_path / "a.txt"), "--out", str(tmp_path / "packed"))

    assert code == 0
    assert "24 held out, vocabulary 256" in capsys.readouterr().out
    assert json.loads((tmp_path / "packed" / "dataset.json").read_text())["vocab_size"] == 256


def test_packing_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = _run("data", "pack", "--out", str(tmp_path / "packed"))

    assert code == 2
    assert "nothing to pack" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [("story",), ("generate",), ("attach",), ("stop",), ("checkpoint", "list")],
    ids=" ".join,
)
def test_a_directory_that_is_no_jobs_is_refused(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = _run(*arguments, str(tmp_path))

    err = capsys.readouterr().err
    assert code == 1
    assert err.startswith("error: ")
    assert str(tmp_path) in err
