"""A controller that is behind does not take its own delay for somebody's silence."""

from dataclasses import replace

from fake_world import World, decisions

from elasticmoe.controller.decisions import Break, Fence
from elasticmoe.controller.machine import advance, replay
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.record import Decided, Record
from elasticmoe.messages.commands import BreakGeneration
from elasticmoe.messages.events import Event, Reported, TimePassed, WorkerDied
from elasticmoe.messages.worker import WorkerParked

BEHIND_S = 30.0


class Behind:
    """A controller that takes every event in long after it accepted it."""

    def __init__(self, world: World) -> None:
        self.world = world

    def take(self, event: Event, at_s: float, behind_s: float) -> None:
        world, number = self.world, len(self.world.records)
        accepted = replace(event, at_s=at_s)
        world.records.append(Record(number, accepted))
        world.state, commands = advance(world.state, accepted, at_s + behind_s)
        world.commands += commands
        for decision in world.state.decided:
            world.records.append(Record(len(world.records), Decided(number, decision)))


def test_patience_begins_when_the_order_is_given_not_when_its_cause_was_accepted() -> None:
    world = World()
    world.submit()
    world.run(until=lambda: world.state.committed_step == 12)
    assert world.state.phase is Phase.TRAINING
    behind, at_s = Behind(world), world.now_s

    behind.take(WorkerDied(0, "a", 0, "killed by signal 9", "log"), at_s, BEHIND_S)
    for worker in (1, 2):
        parked = WorkerParked(world.state.generation, worker, 12, "reset")
        # said, and accepted, behind the order
        at_s = world.now_s + BEHIND_S + 0.02 * worker
        behind.take(Reported(0, "a", parked), at_s, 0.0)
    behind.take(TimePassed(0), world.now_s + BEHIND_S + 0.5, 0.0)

    (broken,) = decisions(world, Break)
    assert broken.at_s == world.now_s + BEHIND_S
    assert any(isinstance(command, BreakGeneration) for command in world.commands)
    assert decisions(world, Fence) == []
    assert replay(world.records) == world.state

    behind.take(TimePassed(0), world.now_s + BEHIND_S + 1.5, 0.0)

    assert [fence.workers for fence in decisions(world, Fence)] == [(3,)]
    assert replay(world.records) == world.state
