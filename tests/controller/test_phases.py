"""The table of phases is the documentation."""

from pathlib import Path

import pytest

from elasticmoe.controller import phases
from elasticmoe.controller.decisions import Train
from elasticmoe.controller.machine import APPLY, DECIDE
from elasticmoe.controller.phases import FINAL_PHASES, NEXT_PHASE, Phase, diagram, next_phase

README = Path(phases.__file__).parent / "README.md"


def reachable(start: Phase) -> set[Phase]:
    found, new = {start}, {start}
    while new:
        new = {target for (phase, _), target in NEXT_PHASE.items() if phase in new} - found
        found |= new
    return found


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_can_reach_an_end(phase: Phase) -> None:
    assert reachable(phase) & FINAL_PHASES


def test_every_phase_can_be_reached() -> None:
    assert reachable(Phase.NEW) == set(Phase)


@pytest.mark.parametrize("phase", sorted(FINAL_PHASES, key=lambda phase: phase.value))
def test_nothing_leaves_an_end(phase: Phase) -> None:
    assert reachable(phase) == {phase}


def test_every_phase_that_lives_knows_how_to_decide() -> None:
    assert set(DECIDE) == set(Phase) - FINAL_PHASES - {Phase.NEW}


def test_every_decision_of_the_table_can_be_applied() -> None:
    assert {trigger for phase, trigger in NEXT_PHASE if phase is not Phase.NEW} == set(APPLY)


def test_a_decision_that_has_no_row_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="Train in phase waiting; expected one of"):
        next_phase(Phase.WAITING, Train)


def test_the_diagram_in_the_readme_is_current() -> None:
    _, _, rest = README.read_text().partition("<!-- diagram -->\n```mermaid\n")
    shown, _, _ = rest.partition("```\n<!-- /diagram -->")

    assert shown == diagram()
