"""`elasticmoe train` as a user runs it: a real Ray, real workers, one of them killed."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from looping_router import LOOP, LoopingRouter

from elasticmoe.cli import main
from elasticmoe.cluster.journal_file import read_journal
from elasticmoe.controller.history import check_history

STEPS = 120
MODULES = f"{Path(__file__).parents[2]}:{Path(__file__).parent}"
LAST_DONE = re.compile(r"  (worker \d+): (.+); holds ")
JOB = f"""
version = 1
name = "tiny"
[model]
vocab_size = 256
hidden_size = 32
num_layers = 2
first_dense_layers = 1
dense_hidden_size = 32
attention = {{ kind = "gqa", num_heads = 2 }}
moe = {{ num_experts = 4, top_k = 2, expert_hidden_size = 16 }}
[data]
sources = [{{ path = "data" }}]
seq_len = 32
[batch]
global_samples = 8
num_waves = 2
[optimizer]
learning_rate = 3e-3
[schedule]
steps = {STEPS}
[parallel]
stages = 2
[workers]
replicas = 2
min = 1
max = 2
device = "cpu"
[checkpoint]
interval_steps = 10
[storage]
dir = "run"
"""


def _elasticmoe(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from elasticmoe.cli import main; main()", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": MODULES, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_whose_worker_is_killed_as_invited_still_takes_every_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does one whose user's code then loops in one worker, for ever."""
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 2000)
    assert _elasticmoe(tmp_path, "data", "pack", "text.txt", "--out", "data").wait(60) == 0
    monkeypatch.setenv(LOOP, str(tmp_path / "loop"))

    looping = f"model.moe.router={LoopingRouter.__module__}:{LoopingRouter.__name__}"
    train = _elasticmoe(tmp_path, "train", "job.toml", "--plain", "--set", looping)
    assert train.stdout is not None
    said, killed = [], 0
    for line in train.stdout:
        said.append(line)
        invited = re.search(r"kill -9 (\d+)", line)
        if invited and not killed:
            killed = int(invited[1])
            os.kill(killed, signal.SIGKILL)
        if "replaced from its node's memory" in line and "signal 9" in line:
            (tmp_path / "loop").touch()

    text = "".join(said)
    assert train.wait(30) == 0, text
    assert killed, text
    assert "signal 9" in text
    assert (tmp_path / "loop.taken").exists(), text
    assert re.search(r"worker \d+ did not leave its generation in time and was killed", text)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["outcome"], summary["faults"]) == (STEPS, "done", 2)
    assert (summary["recoveries"], summary["workers_lost"]) == (2, 2)
    assert check_history(read_journal(tmp_path / "run" / "journal")) == []
    _assert_flight_is_told(tmp_path, capsys)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_train_after_its_terminal_was_killed_watches_the_running_job_again(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 2000)
    assert _elasticmoe(tmp_path, "data", "pack", "text.txt", "--out", "data").wait(60) == 0
    arguments = ("train", "job.toml", "--plain", "--set", "schedule.steps=100000")
    first = _elasticmoe(tmp_path, *arguments)
    assert first.stdout is not None
    _read_until(first.stdout, "Try it")

    first.kill()

    assert first.wait(10) == -signal.SIGKILL
    again = _elasticmoe(tmp_path, *arguments)
    assert again.stdout is not None
    line = _read_until(again.stdout, "watching it again")
    assert re.match(r"tiny runs already and is at step \d+ of 100000: watching it again", line)
    _read_until(again.stdout, "Try it")
    again.send_signal(signal.SIGINT)
    text = again.stdout.read()
    assert again.wait(60) == 0, text
    assert "stopped by a user at step" in text
    records = read_journal(tmp_path / "run" / "journal")
    assert check_history(records) == []
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["outcome"], summary["faults"]) == ("stopped", 0)


def _assert_flight_is_told(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`story` knows both recoveries, and what every worker did last before the first."""
    run, traces = directory / "run", directory / "traces"
    with pytest.raises(SystemExit) as left:
        main(["story", str(run), "--recoveries", "--traces", str(traces)])
    assert left.value.code in (0, None)
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"recovery 1: replace, \d+\.\d{3} s", lines[0])
    second = next(at for at, line in enumerate(lines) if line.startswith("recovery 2: replace"))
    last_done = dict(found.groups() for line in lines[:second] if (found := LAST_DONE.match(line)))
    assert sorted(last_done) == ["worker 0", "worker 1"]
    assert all(re.fullmatch(r"[a-z]+, collective [1-9]\d*", done) for done in last_done.values())
    assert any("killed by signal 9" in line for line in lines)
    assert lines[-1] == f"2 traces written to {traces}"
    trace = json.loads((traces / "recovery-0001.json").read_text())
    assert trace["otherData"]["last_done"] == last_done
    names = {event["name"] for event in trace["traceEvents"] if event["ph"] == "X"}
    assert {"notice", "form", "first step"} <= names


def _read_until(lines: Iterator[str], text: str) -> str:
    said = []
    for line in lines:
        said.append(line)
        if text in line:
            return line
    raise AssertionError(f"{text!r} was not said: {''.join(said)}")
