"""Every benchmark and rival runs at a tiny size and says what it found."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.rivals.job import Workload
from benchmarks.rivals.loop import Alone, TorchLoop

ROOT = Path(__file__).parents[2]
TINY = ("--preset=quickstart", "--batch=4", "--seq-len=32", "--waves=2", "--steps=2")

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """As `run`, but torch is not imported once more by a benchmark that only gives orders."""

    def run_script(script: str, *arguments: str) -> list[str]:
        path = str(ROOT / "benchmarks" / script)
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run_script


def run(script: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "part,figures",
    [
        ("one", ["one_worker_vs_torch"]),
        ("two", ["two_workers_vs_ddp"]),
        ("dispatch", ["dispatch_overhead_share", "dispatch_vs_plain"]),
        ("protocol", ["protocol_share", "hash_share", "protocol_share_1024"]),
        ("protocol-steps", ["protocol_share_whole_steps"]),
        pytest.param(
            "cold-start", ["cold_start_vs_ray_train"], marks=[pytest.mark.ray, pytest.mark.soak]
        ),
    ],
)
def test_each_part_of_throughput_ends_with_its_figures(
    run_here: Callable[..., list[str]], part: str, figures: list[str]
) -> None:
    lines = run_here("throughput.py", "--quick", "--only", part)

    found = json.loads(lines[-1])
    assert set(figures) <= set(found)
    assert all(isinstance(found[name], float) for name in figures)


def test_checkpoint_ends_with_its_figure(run_here: Callable[..., list[str]]) -> None:
    lines = run_here("checkpoint.py", "--quick")

    assert "excess_vs_dcp_async" in json.loads(lines[-1])


def test_decision_ends_with_its_figures() -> None:
    lines = run("decision.py", "--quick", "--rounds=1")

    found = json.loads(lines[-1])
    assert set(found) == {"decision_replace_s", "decision_failover_s"}
    assert all(0 < seconds < 10 for seconds in found.values())


@pytest.mark.ray
def test_watching_ends_with_its_figure() -> None:
    lines = run("watching.py", "--quick")

    assert 0 < json.loads(lines[-1])["watching_share"] < 1


@pytest.mark.ray
@pytest.mark.parametrize(
    "part",
    [
        "ours-4-replace",
        *(
            pytest.param(part, marks=pytest.mark.soak)
            for part in ("ours-2-failover", "torchrun", "ray-train-defaults", "torchft-500")
        ),
    ],
)
def test_each_side_of_recovery_survives_its_kill_and_tells_what_it_cost(
    part: str, tmp_path: Path
) -> None:
    if "torchft" in part:
        pytest.importorskip("torchft")
    out = tmp_path / "found.json"

    run("recovery.py", "--quick", "--kills=1", "--watch-s=0", f"--out={out}", "--only", part)

    found = json.loads(out.read_text())["parts"][part]
    (recovery,) = found["recoveries"]  # the benchmark fails where a victim survives
    assert 0 < recovery["overhead_s"] < recovery["any_s"] <= recovery["beyond_s"]
    assert recovery["full_s"] >= recovery["any_s"]
    assert all(seconds >= 0 for seconds in recovery["phases"].values())
    last = run("recovery.py", f"--combine={out}")[-1]
    assert isinstance(json.loads(last), dict)


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.parametrize(
    "part,rung",
    [
        ("hang-2", "replace"),
        ("loop-2", "replace"),
        ("dropped-connection-4", "retry"),
        ("kill-busy", "replace"),
        ("node-loss", "failover"),
        ("partition", "failover"),
    ],
)
def test_each_fault_is_answered_by_its_rung_and_nothing_is_lost(
    part: str, rung: str, tmp_path: Path
) -> None:
    out = tmp_path / "found.json"

    lines = run("faults.py", "--quick", f"--out={out}", "--only", part)

    found = json.loads(out.read_text())["parts"][part]
    if "left_out" in found:
        pytest.skip(found["left_out"])
    (recovery,) = found["recoveries"]  # the benchmark fails where a fault leaves no proof
    assert recovery["rung"] == rung
    assert 0 < recovery["overhead_s"] < recovery["any_s"]
    last = json.loads(lines[-1])
    assert (last["steps_rolled_back"], last["other_rungs"]) == (0, 0)


@pytest.mark.parametrize(
    "script,workers",
    [
        (["rivals/plain.py"], 1),
        (["rivals/torchrun_ddp.py", "--sum=flat"], 2),
        (["rivals/torchrun_ddp.py", "--sum=ddp"], 2),
        pytest.param(["rivals/torchft_ddp.py"], 2, marks=pytest.mark.ray),
        pytest.param(["rivals/ray_train.py"], 2, marks=pytest.mark.ray),
    ],
)
def test_each_rival_takes_the_same_steps_as_one_torch_process(
    script: list[str], workers: int
) -> None:
    if "torchft" in script[0]:
        pytest.importorskip("torchft")
    reference = TorchLoop(Workload("quickstart", 4, 32, 2).job(), Alone())

    lines = run(*script, *TINY)

    events = [json.loads(line) for line in lines if line.startswith("{")]
    ends = [event for event in events if event["event"] == "end"]
    assert len({event["pid"] for event in ends}) == workers
    assert all(len(end["step_s"]) == 2 and end["first_step_s"] > 0 for end in ends)
    for step in (1, 2):
        reference.step()
        shares = [e["loss_share"] for e in events if e["event"] == "step" and e["step"] == step]
        assert len(shares) == workers
        assert sum(shares) == pytest.approx(reference.loss_share, rel=1e-5)


def test_a_resumed_rival_goes_on_where_it_was(tmp_path: Path) -> None:
    job = Workload("quickstart", 4, 32, 2).job()
    straight, resumed = TorchLoop(job, Alone()), TorchLoop(job, Alone())
    saved = tmp_path / "saved.pt"
    straight.take(1)
    torch.save(straight.state_dict(), saved)

    resumed.load_state_dict(torch.load(saved, weights_only=True))
    straight.take(1)
    resumed.take(1)

    assert torch.equal(straight.weights, resumed.weights)
