"""A few minutes of everything: real processes, real faults, in the order that a seed gives."""

import os
import shutil
from pathlib import Path

import pytest

from chaos.run import execute
from chaos.scenario import Scenario, from_plain, read_scenario

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
NUM_FAULTS = 16
LIMIT_S = 480.0
"""Of a run that takes three minutes on two free cores: behind it the verdict is "too slow"."""
MIN_KINDS = 5
"""Different nemeses that must have struck, whatever the seed draws."""


def shortened() -> Scenario:
    """The soak where its network namespaces are permitted, else the mix for one machine."""
    is_whole = os.geteuid() == 0 and shutil.which("ip") is not None
    scenario = read_scenario("soak" if is_whole else "mixed")
    (fault,) = scenario.fault
    short = fault.model_copy(update={"count": NUM_FAULTS, "every_steps": 6.0})
    changed = scenario.model_copy(update={"fault": (short,), "limit_s": LIMIT_S})
    return from_plain(changed.model_dump(mode="json", by_alias=True))


def test_three_minutes_of_mixed_faults_end_clean(tmp_path: Path) -> None:
    report = execute(shortened(), tmp_path, again="make soak")

    assert report.problems == (), report.to_markdown()
    assert len(report.strikes) == NUM_FAULTS
    assert all(strike.evidence for strike in report.strikes)
    assert len({strike.nemesis for strike in report.strikes}) >= MIN_KINDS
