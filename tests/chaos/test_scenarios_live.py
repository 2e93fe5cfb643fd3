"""Every scenario that ships, against a live job. Minutes: left to `make soak`."""

import os
import shutil
from pathlib import Path

import pytest

from chaos.run import execute
from chaos.scenario import SCENARIOS, Scenario, read_scenario

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.timeout(900),
]
LONG = {"mixed", "soak", "storm"}
"""Run for as long as one likes: `test_mixed_run.py`, `make soak`, `python -m chaos storm`."""
NAMES = sorted({path.stem for path in SCENARIOS.glob("*.toml")} - LONG)


def lacking(scenario: Scenario) -> str:
    """What this machine lacks for a scenario; empty if nothing."""
    nemeses = {choice.nemesis for fault in scenario.fault for choice in fault.strike}
    wants_root = scenario.has_cluster or scenario.has_small_disk or "drop_connection" in nemeses
    if wants_root and os.geteuid() != 0:
        return "root"
    tools = ["ip"] if scenario.cluster is not None else []
    if scenario.cluster is not None and scenario.cluster.durable_head == "redis":
        tools.append("redis-server")
    if scenario.skewable_clocks:
        tools.append("cc")
    return ", ".join(tool for tool in tools if shutil.which(tool) is None)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_scenario_ends_clean(name: str, tmp_path: Path) -> None:
    scenario = read_scenario(name)
    if missing := lacking(scenario):
        pytest.skip(f"needs {missing}")

    report = execute(scenario, tmp_path, again=f"python -m chaos run {name}")

    assert report.problems == (), report.to_markdown()
    assert len(report.strikes) == sum(fault.count for fault in scenario.fault)
    assert all(strike.evidence for strike in report.strikes)
