"""The same as `protocol_faults.endings`, one action of one worker at a time.

Too slow for more than the smallest gangs: it is there to show that looking at one moment per
member leaves no interleaving out.
"""

from collections.abc import Sequence

from protocol_faults import KILLED, LOST, PARKED, Ending, fall
from protocol_run import Moment, Track
from protocol_vault import Case, drop_garbage
from protocol_world import World

RUNNING = "running"
BREAKING = "running to where it parks"

Place = tuple[str, int, int]
"""(what it is doing, or its fate; its moment; how many moments of the broken collective)."""


def walk(case: Case, world: World, tracks: Sequence[Track], max_faults: int) -> set[World]:
    """All worlds that up to so many faults can leave."""
    start: tuple[Place, ...] = ((RUNNING, 0, 0),) * len(tracks)
    todo = [(start, 0, frozenset[int]())]
    seen = set(todo)
    worlds = set()
    while todo:
        places, faults, lost = todo.pop()
        if faults and all(what not in (RUNNING, BREAKING) for what, _, _ in places):
            fates = tuple(
                (track.worker, place[0], _moment(track, place))
                for track, place in zip(tracks, places, strict=True)
            )
            worlds.add(fall(case, world, Ending(faults, tuple(sorted(lost)), fates)))
        for after in _actions(case, tracks, places, faults, lost, max_faults):
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return worlds


State = tuple[tuple[Place, ...], int, frozenset[int]]


def _actions(
    case: Case,
    tracks: Sequence[Track],
    places: tuple[Place, ...],
    faults: int,
    lost: frozenset[int],
    max_faults: int,
) -> list[State]:
    found: list[State] = []
    for at, (_, place) in enumerate(zip(tracks, places, strict=True)):
        for after in _own_actions(tracks, places, at, is_broken=faults > 0):
            found.append(((*places[:at], after, *places[at + 1 :]), faults, lost))
        if faults < max_faults and place[0] in (RUNNING, BREAKING):
            dead = (KILLED, *place[1:])
            found.append(((*places[:at], dead, *places[at + 1 :]), faults + 1, lost))
    if faults == 0:
        found.append((places, 1, lost))  # the network is cut
    nodes = {case.node(worker) for worker in range(case.workers)} - lost
    for node in nodes if faults < max_faults else ():
        after_loss = tuple(
            (LOST, *place[1:]) if case.node(track.worker) == node else place
            for track, place in zip(tracks, places, strict=True)
        )
        found.append((after_loss, faults + 1, lost | {node}))
    return found


def _own_actions(
    tracks: Sequence[Track], places: tuple[Place, ...], at: int, *, is_broken: bool
) -> list[Place]:
    what, moment, broken = places[at]
    track = tracks[at]
    if what == BREAKING:
        if broken < len(track.moments[moment].broken):
            return [(BREAKING, moment, broken + 1)]
        return [(PARKED, moment, broken)]
    if what != RUNNING:
        return []
    collective = track.moments[moment].collective
    found: list[Place] = []
    if (collective or moment == 0) and is_broken:  # at 0 it may not have heard of it yet
        found.append((BREAKING, moment, 0))
    number = sum(1 for each in track.moments[: moment + 1] if each.collective)
    everybody_is_there = all(
        sum(1 for each in other.moments[: place[1] + 1] if each.collective) >= number
        for other, place in zip(tracks, places, strict=True)
    )
    if moment + 1 < len(track.moments) and (not collective or everybody_is_there):
        found.append((RUNNING, moment + 1, 0))
    return found


def _moment(track: Track, place: Place) -> Moment:
    _, moment, broken = place
    found = track.moments[moment]
    if broken:
        found = found.broken[broken - 1]
    return found._replace(held=tuple((worker, drop_garbage(vault)) for worker, vault in found.held))
