"""Scenarios: those that ship are right, and a wrong one says what is wrong."""

import pytest

from chaos.errors import ScenarioError
from chaos.nemeses import NEMESES
from chaos.scenario import SCENARIOS, parse_scenario, read_scenario
from chaos.schedule import plan_faults

GOOD = """
name = "one"
[[fault]]
at_step = 5
strike = [{ nemesis = "kill_worker" }]
"""
SHIPPED = sorted(path.stem for path in SCENARIOS.glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scenario_is_right_and_named_like_its_file(name: str) -> None:
    scenario = read_scenario(name)

    assert scenario.name == name
    assert scenario.about
    assert plan_faults(scenario)


def test_every_nemesis_has_a_shipped_scenario_and_a_part_in_the_soak() -> None:
    def used(name: str) -> set[str]:
        return {choice.nemesis for fault in read_scenario(name).fault for choice in fault.strike}

    assert set().union(*map(used, set(SHIPPED) - {"soak", "mixed"})) == set(NEMESES)
    assert used("soak") == set(NEMESES)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (("kill_worker", "kill_wroker"), 'no nemesis "kill_wroker"'),
        (("at_step = 5", "at_stp = 5"), "fault[0].at_stp = 5: no such field; did you mean at_step"),
        (("at_step = 5", 'at_step = "5"'), 'fault[0].at_step = "5": must be an integer'),
        (("at_step = 5", "at_step = 0"), "fault[0].at_step = 0: greater than or equal to 1"),
        (("at_step = 5", ""), "exactly one of at_step, every_steps and recovering"),
        (("at_step = 5", "at_step = 5\nevery_steps = 3.0"), "this one has at_step and every_steps"),
        (("at_step = 5", "at_step = 5\ncount = 2"), "a step comes once"),
        (('name = "one"', ""), "name is missing"),
        (("kill_worker", "cut_link"), "cut_link needs [cluster]"),
        (("kill_worker", "full_disk"), "full_disk needs disk_mb"),
        (("kill_worker", "skew_clock"), "skew_clock needs skewable_clocks = true"),
        (("kill_worker", "kill_ray_head"), "kill_ray_head needs [cluster] with durable_head"),
        (
            ('"kill_worker" }', '"flip_bit", with = { part = "bias" } }'),
            'flip_bit: part = "bias": \'master\', \'exp_avg\' or \'exp_avg_sq\'',
        ),
        (
            ('"kill_worker" }', '"kill_worker", with = { how = "hard" } }'),
            'kill_worker: how = "hard": no such field',
        ),
        (('name = "one"', 'name = "one'), "this is not valid TOML"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_in_one_sentence(change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(GOOD.replace(*change))

    assert sentence in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_scenario_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ScenarioError, match=r"shipped scenarios: .*storm"):
        read_scenario("tsunami")


def test_the_same_seed_plans_the_same_faults_and_another_one_others() -> None:
    soak = read_scenario("soak")

    steps = [planned.step for planned in plan_faults(soak)]

    assert steps == [planned.step for planned in plan_faults(soak)]
    other = soak.model_copy(update={"seed": 1})
    assert steps != [planned.step for planned in plan_faults(other)]
    assert len(steps) == 200
    assert 1500 < (steps[-1] or 0) < 2500  # 200 faults at a mean of ten steps


def test_a_fault_during_a_recovery_comes_behind_the_fault_that_causes_it() -> None:
    planned = plan_faults(read_scenario("second_death_forming"))

    assert [entry.fault.recovering for entry in planned] == [None, "forming"]
    assert [entry.number for entry in planned] == [1, 2]
