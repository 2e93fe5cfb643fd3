"""When a silence means that a worker's heart has stopped."""

import pytest

from elasticmoe.cluster.watch import (
    LONGEST_LEASE_S,
    MEMORY_S,
    POLL_S,
    SHORTEST_LEASE_S,
    STOPPED_LEASE_S,
    HeartbeatWatch,
    Sign,
    decide_lease,
)
from elasticmoe.vault.pulse import BEAT_S


class World:
    """One worker and its watcher, on a clock of their own."""

    def __init__(self, *, is_stopped: bool = False, phase: str = "compute") -> None:
        self.now_s, self.beat_s = 100.0, 100.0
        self.phase = phase
        self.is_stopped = is_stopped
        self.found: list[tuple[float, str]] = []
        """Silence at the time of each report, and the evidence."""
        self.core_waits: dict[int, float] = {77: 0.0, 78: 5.0}
        self._watch = HeartbeatWatch(lambda pid: self.is_stopped, lambda pid: self.core_waits)

    def pass_time(
        self, seconds: float, *, beats: bool, polls: bool = True, starved: float = 0.0
    ) -> None:
        """Let time pass, with or without heartbeats, with or without looks.

        Args:
            starved: share of the time that the heartbeat's thread waits for a core.
        """
        end_s = self.now_s + seconds - 1e-9
        while self.now_s < end_s:
            self.now_s += POLL_S
            waited_s = self.core_waits[78] + starved * POLL_S
            self.core_waits = {**self.core_waits, 78: waited_s}
            if beats:
                self.beat_s = self.now_s - 0.005
            if polls:
                self.look()

    def look(self) -> None:
        sign = Sign(1, 77, self.beat_s, self.phase)
        for silence in self._watch.look(self.now_s, [sign]):
            self.found.append((self.now_s - self.beat_s, silence.evidence))


def test_a_stopped_process_is_reported_once_when_the_short_lease_is_over() -> None:
    world = World(is_stopped=True)
    world.pass_time(1, beats=True)

    world.pass_time(5, beats=False)

    ((silence_s, evidence),) = world.found
    assert STOPPED_LEASE_S < silence_s <= STOPPED_LEASE_S + POLL_S + 1e-6
    assert "the process is stopped" in evidence


@pytest.mark.parametrize("stops_after_s", [0.001, 0.03, 0.05, 0.08, 0.099])
@pytest.mark.parametrize("late_s", [0.0, 0.003, 0.008])
def test_five_looks_a_second_find_a_stop_within_a_quarter_of_one(
    stops_after_s: float, late_s: float
) -> None:
    """Four workers that beat together, until one stops so long after a beat."""
    watch, now_s, looks = HeartbeatWatch(lambda pid: True, lambda pid: {}), 100.005, 0
    stops_s = 103.0 + stops_after_s
    while True:
        newest_s = now_s - now_s % BEAT_S
        stopped_s = min(newest_s, stops_s - stops_s % BEAT_S)
        signs = [Sign(worker, 77, newest_s, "compute") for worker in range(3)]
        found = watch.look(now_s, [*signs, Sign(3, 78, stopped_s, "compute")])
        if found:
            break
        looks += now_s < stops_s
        now_s += watch.pause_s + late_s

    assert [silence.worker for silence in found] == [3]
    assert 0.1 < now_s - stops_s < 0.25
    assert looks <= 5 * 3 + 1


def test_a_process_that_hangs_is_reported_when_its_own_lease_is_over() -> None:
    world = World()
    world.pass_time(1, beats=True)

    world.pass_time(5, beats=False)

    ((silence_s, evidence),) = world.found
    assert SHORTEST_LEASE_S < silence_s <= SHORTEST_LEASE_S + POLL_S + 1e-6
    assert "its lease was 0.35 s" in evidence


def test_a_worker_that_has_been_slow_before_gets_more_time() -> None:
    world = World()
    for _ in range(20):
        world.pass_time(0.2, beats=False)
        world.pass_time(0.1, beats=True)
    assert world.found == []

    world.pass_time(5, beats=False)

    ((silence_s, _),) = world.found
    late_s = 0.2 - BEAT_S
    assert BEAT_S + 4 * late_s < silence_s < BEAT_S + 4 * (late_s + POLL_S) + 2 * POLL_S


def test_an_old_silence_is_forgotten() -> None:
    world = World()
    world.pass_time(0.2, beats=False)
    world.pass_time(2 * MEMORY_S + POLL_S, beats=True)

    world.pass_time(5, beats=False)

    ((silence_s, _),) = world.found
    assert silence_s <= SHORTEST_LEASE_S + POLL_S + 1e-6


def test_a_silence_that_goes_on_does_not_lengthen_its_own_lease() -> None:
    world = World()
    world.pass_time(0.06, beats=True)

    world.pass_time(SHORTEST_LEASE_S + 2 * POLL_S, beats=False)

    assert len(world.found) == 1


def test_nothing_is_concluded_when_the_watcher_was_held_up_as_well() -> None:
    world = World(is_stopped=True)
    world.pass_time(1, beats=True)

    world.pass_time(60, beats=False, polls=False)  # the machine was suspended
    world.look()
    world.pass_time(STOPPED_LEASE_S / 2, beats=False)
    world.pass_time(1, beats=True)

    assert world.found == []


def test_a_watcher_that_is_always_late_still_finds_a_stopped_process() -> None:
    world = World(is_stopped=True)

    for _ in range(20):
        world.pass_time(5 * POLL_S, beats=False, polls=False)
        world.look()

    assert len(world.found) == 1


def test_a_worker_that_waits_for_a_core_is_not_silent_but_a_hang_on_a_busy_machine_is() -> None:
    world = World()
    world.pass_time(1, beats=True)

    world.pass_time(5, beats=False, starved=0.98)
    assert world.found == []
    world.pass_time(5, beats=False, starved=0.5)

    ((silence_s, _),) = world.found
    assert silence_s > 5


@pytest.mark.parametrize("phase", ["", "form"])
def test_a_worker_that_forms_may_be_silent_for_long_unless_it_is_stopped(phase: str) -> None:
    world = World(phase=phase)
    world.pass_time(LONGEST_LEASE_S - POLL_S, beats=False)
    assert world.found == []

    world.is_stopped = True
    world.pass_time(POLL_S, beats=False)

    assert len(world.found) == 1


def test_a_number_that_was_reported_and_ended_is_watched_afresh() -> None:
    watch = HeartbeatWatch(lambda pid: True, lambda pid: {})
    watch.look(0.0, [Sign(1, 77, 0.0, "compute")])
    looks = (watch.look(look * POLL_S, [Sign(1, 77, 0.0, "compute")]) for look in range(1, 20))
    assert sum(map(len, looks)) == 1

    watch.look(1.0, [])

    assert watch._heard == {}


@pytest.mark.parametrize(
    "longest_s, phase, lease_s",
    [
        (BEAT_S, "compute", 0.35),
        (BEAT_S + 0.03, "compute", 0.35),
        (BEAT_S + 0.1, "reduce", BEAT_S + 0.4),
        (0.9, "apply", 2.0),
        (0.0, "form", 2.0),
        (0.0, "", 2.0),
    ],
)
def test_a_lease_follows_from_the_longest_silence(
    longest_s: float, phase: str, lease_s: float
) -> None:
    assert decide_lease(longest_s, phase) == pytest.approx(lease_s)
