"""Whatever happens in whatever order, the promises hold."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from fake_job import small_inventory, small_job
from fake_world import World, assert_sound
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from elasticmoe.controller.decisions import Form
from elasticmoe.controller.journal import decode_record, encode_record
from elasticmoe.controller.machine import advance, outstanding, replay
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.record import Decided, Record
from elasticmoe.controller.state import JobState
from elasticmoe.messages.events import (
    CheckpointAsked,
    CheckpointLost,
    CheckpointSealed,
    CommandFailed,
    JobSubmitted,
    JournalResumed,
    NodeLost,
    NodeUp,
    Reported,
    StopAsked,
    TermBegan,
    TimePassed,
    WorkerDied,
)
from elasticmoe.messages.worker import (
    CheckpointFailed,
    CheckpointPart,
    GangEnded,
    GangFormed,
    StepDone,
    WorkerFailed,
    WorkerParked,
    WorkerReady,
)

FAULTS = (
    *("kill",) * 3,
    *("kill at",) * 6,
    *("lose at",) * 2,
    *("cut", "lose", "add", "stick", "stop", "hang", "undecided", "undone", "ask"),
)
POINTS = ("begun", "prepared", "voted", "half", "applied", "told", "opened", "moved", "joined")
RUNGS = ("retry", "replace", "failover")
SHAPES = ((2, 2), (2, 2), (1, 1, 1, 1), (3, 1), (2, 1, 1))
"""Workers that fit on each node."""


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[int, str, int]]:
    """Faults, each so many events after the one before."""
    fault = st.tuples(st.integers(0, 40), st.sampled_from(FAULTS), st.integers(0, 63))
    return draw(st.lists(fault, min_size=1, max_size=12))


def inject(world: World, kind: str, which: int) -> None:
    alive = sorted(world.alive)
    match kind:
        case "kill" if alive:
            world.kill(alive[which % len(alive)])
        case "kill at":
            strike_at(world, POINTS[which % len(POINTS)], which // len(POINTS), world.kill)
        case "lose at":
            strike_at(world, POINTS[which % len(POINTS)], which // len(POINTS), world.lose_node_of)
        case "cut":
            world.cut()
        case "lose" if len(world.nodes) > 1:
            world.lose_node(sorted(world.nodes)[which % len(world.nodes)])
        case "add":
            world.add_node(f"n{which % 8}", 1 + which % 3)
        case "stick" if alive:
            world.stuck.add(alive[which % len(alive)])
        case "stop" if alive:
            world.stop(alive[which % len(alive)])
        case "hang" if alive:
            world.hang(alive[which % len(alive)])
        case "undecided" | "undone":
            world.crash = kind
        case "ask":
            world.at(0, CheckpointAsked(0))


def strike_at(world: World, point: str, nth: int, strike: Callable[[int], None]) -> None:
    """Strike whoever comes to a point of the protocol next, after so many others."""
    left = [nth]

    def look(name: str, step: int, worker: int) -> None:
        if name == point and left[0] >= 0:
            left[0] -= 1
            if left[0] < 0:
                strike(worker)

    before = world.on_point

    def both(name: str, step: int, worker: int) -> None:
        before(name, step, worker)
        look(name, step, worker)

    world.on_point = both


class Watch:
    """Checks what must hold after every event."""

    def __init__(self, world: World) -> None:
        self.world, self.timeline, self.committed = world, 0, 0
        self.states: dict[int, JobState] = {}

    def __call__(self, event: object) -> None:
        state = self.world.state
        self.states[len(self.world.records)] = state
        if state.timeline == self.timeline:
            assert state.committed_step >= self.committed
        assert state.timeline >= self.timeline
        self.timeline, self.committed = state.timeline, state.committed_step


def disturb(world: World, faults: list[tuple[int, str, int]]) -> Watch:
    """Run a job to its end with faults on the way; nodes come as long as too few are left."""
    world.submit()
    watch = world.on_event = Watch(world)
    for gap, kind, which in faults:
        target = len(world.records) + gap
        world.run(until=lambda: len(world.records) >= target)  # noqa: B023
        if world.state.is_final:
            break
        inject(world, kind, which)
    world.run()
    for number in range(len(faults) + 1):  # "lose at" may be due for a relief node only
        if not world.state.is_final:
            world.add_node(f"relief{number}", 4)
            world.run()
    return watch


@given(
    schedules(),
    st.integers(1, 3),
    st.sets(st.sampled_from(RUNGS), max_size=2),
    st.sampled_from([0.0, 0.0, 0.05, 0.3]),
    st.dictionaries(st.integers(0, 3), st.floats(0, 0.5), max_size=1),
    st.sampled_from(SHAPES),
)
@example([(0, "lose at", 46), (0, "lose at", 0)], 1, set(), 0.0, {}, (3, 1))  # relief is lost too
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_faults_break_no_promise(
    faults: list[tuple[int, str, int]],
    redundancy: int,
    skip: set[str],
    report_s: float,
    formed_late_s: dict[int, float],
    shape: tuple[int, ...],
) -> None:
    protection = {
        "max_restarts": 100,
        "restart_backoff_s": 0.01,
        "redundancy": redundancy,
        "skip_rungs": sorted(skip),
    }
    job = small_job(protection=protection)
    nodes = dict(zip("abcd", shape, strict=False))
    world = World(job=job, nodes=nodes, report_s=report_s, formed_late_s=formed_late_s)

    watch = disturb(world, faults)

    assert world.state.phase is Phase.DONE
    assert world.state.committed_step == 30
    assert_sound(world)
    for length in sorted(watch.states)[:: max(len(watch.states) // 8, 1)]:
        assert replay(world.records[:length]) == watch.states[length]
    for record in world.records:
        if isinstance(record.body, Decided):
            assert decode_record(encode_record(record)) == record
        if isinstance(record.body, Decided) and isinstance(record.body.decision, Form):
            assert 2 <= len(record.body.decision.workers) <= 4


numbers = st.integers(0, 5)
reports = st.one_of(
    st.builds(WorkerReady, numbers, numbers),
    st.builds(GangFormed, numbers, numbers, numbers, st.just({})),
    st.builds(
        StepDone,
        numbers,
        st.integers(1, 40),
        st.just(0.1),
        st.just(1.0),
        st.just({}),
        st.just((0, 4)),
        numbers,
    ),
    st.builds(WorkerParked, numbers, numbers, numbers, st.just("why")),
    st.builds(WorkerFailed, numbers, numbers, numbers, st.just("bad_data"), st.just("why")),
    st.builds(CheckpointPart, numbers, numbers, st.integers(1, 30), st.just([]), st.just({})),
    st.builds(CheckpointFailed, numbers, numbers, st.integers(1, 30), st.just("why")),
    st.builds(GangEnded, numbers, numbers, st.sampled_from([10, 30])),
)
nodes = st.sampled_from(["a", "b"])
times = st.just(0.0)
commands = st.sampled_from(
    ["StartWorkers", "FormGeneration", "InstructGang", "SealCheckpoint", "KillWorkers"]
)
events = st.one_of(
    st.builds(NodeUp, times, nodes, nodes, st.just("host"), numbers, st.just(2**30)),
    st.builds(NodeLost, times, nodes, st.just("why")),
    st.builds(WorkerDied, times, nodes, numbers, st.just("exit status 1"), st.just("log")),
    st.builds(Reported, times, nodes, reports),
    st.builds(CheckpointSealed, times, st.integers(1, 30), st.just("u"), numbers, numbers),
    st.builds(CheckpointLost, times, st.integers(1, 30), st.just("why"), numbers),
    st.builds(CommandFailed, times, commands, st.just("why"), numbers, nodes),
    st.builds(CheckpointAsked, times),
    st.builds(StopAsked, times, st.just("you")),
    st.builds(TermBegan, times, numbers, st.just("v")),
    st.builds(JournalResumed, times, st.sampled_from([0.0, 5.0])),
    st.builds(TimePassed, times),
)


@given(st.lists(st.tuples(events, st.sampled_from([0.0, 0.03, 1.0, 10.0, 700.0])), max_size=60))
@settings(max_examples=150, deadline=None)
def test_no_sequence_of_events_raises(
    happenings: list[tuple[Any, float]],
) -> None:
    job = small_job()
    inventory = asdict(small_inventory(job))
    first = JobSubmitted(0.0, job.model_dump(mode="json"), inventory, [])
    state, records, now_s = JobState(), [], 0.0

    for event, gap_s in [(first, 0.0), *happenings]:
        now_s += gap_s
        number = len(records)
        moved = replace(event, at_s=now_s)
        state, _ = advance(state, moved)
        records.append(Record(number, moved))
        records += [
            Record(number + 1 + n, Decided(number, one)) for n, one in enumerate(state.decided)
        ]
        outstanding(state)

    assert state.phase is not Phase.NEW
    assert state.spec == job
