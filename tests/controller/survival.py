"""What the tests of recoveries share."""

from fake_world import World, assert_sound, decisions

from elasticmoe.controller.decisions import Form, Recover, Train
from elasticmoe.controller.phases import Phase
from elasticmoe.plan.types import Plan

NO_REPLACE = {"skip_rungs": ["replace"]}


def done(world: World) -> World:
    """Run to the end; all that must hold of a job that lost nothing."""
    world.submit()
    world.run()
    assert world.state.phase is Phase.DONE
    assert world.state.committed_step == 30
    assert world.state.tally.steps_rolled_back == 0
    assert world.state.timeline == 0
    assert_sound(world)
    return world


def rungs(world: World) -> list[str]:
    return [recover.rung for recover in decisions(world, Recover)]


def plans(world: World) -> list[Plan]:
    return [Plan.from_json(form.plan) for form in decisions(world, Form)]


def last_sentence(world: World) -> str:
    return decisions(world, Train)[-1].reason
