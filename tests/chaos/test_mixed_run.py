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
    """The soak where its network namespaces are permitted, first of all a cut, which its seed may
    not draw; else the mix for one machine."""
    is_whole = os.geteuid() == 0 and shutil.which("ip") is not None
    scenario = read_scenario("soak" if is_whole else "mixed")
    plain = scenario.model_dump(mode="json", by_alias=True)
    (mix,) = plain["fault"]
    cut = {"at_step": 8, "strike": [{"nemesis": "cut_link", "with": {"for_s": 6}}]}
    certain = [cut] if is_whole else []
    mix |= {"count": NUM_FAULTS - len(certain), "every_steps": 6.0}
    return from_plain(plain | {"fault": [*certain, mix], "limit_s": LIMIT_S})


def test_three_minutes_of_mixed_faults_end_clean(tmp_path: Path) -> None:
    report = execute(shortened(), tmp_path, again="make soak")

    assert report.problems == (), report.to_markdown()
    assert len(report.strikes) == NUM_FAULTS
    assert all(strike.evidence for strike in report.strikes)
    kinds = {strike.nemesis for strike in report.strikes}
    assert len(kinds) >= MIN_KINDS
    assert "cut_link" in kinds or report.scenario.cluster is None
