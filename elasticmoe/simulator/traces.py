"""Records of nodes that join and leave: read them, measure them, make more like them.

A trace is text, one row per change: `ms,op,node` with op `add` or `remove`. Rows of one moment
and one kind are one event, because the job sees them at once: six nodes lost together are a
different thing from six nodes lost one after another. Nothing here opens a file: lines come in.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import gamma
from typing import Final, Literal, cast

import numpy as np

from elasticmoe.errors import DataError

Kind = Literal["add", "remove"]

P3_HOURS: Final = 40920 / 3600
"""Length of the P3 trace."""


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """Nodes that came or went at one moment."""

    at_s: float
    kind: Kind
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """Events in order of time. The trace begins with its first event and ends with its last."""

    events: tuple[TraceEvent, ...]

    @property
    def start_s(self) -> float:
        """Moment of the first event; 0 if there is none."""
        return self.events[0].at_s if self.events else 0.0

    @property
    def end_s(self) -> float:
        """Moment of the last event; 0 if there is none."""
        return self.events[-1].at_s if self.events else 0.0

    def node_seconds(self, lasts_s: float | None = None) -> float:
        """Time that all its nodes are there, together.

        Args:
            lasts_s: from its beginning on; those of the last event stay. None: up to its end.
        """
        end_s = self.end_s if lasts_s is None else self.start_s + lasts_s
        offered, nodes, now_s = 0.0, 0, self.start_s
        for event in self.events:
            at_s = min(event.at_s, end_s)
            offered, now_s = offered + nodes * (at_s - now_s), at_s
            nodes += len(event.nodes) if event.kind == "add" else -len(event.nodes)
            if event.at_s > end_s:
                return offered
        return offered + nodes * (end_s - now_s)

    def lines(self) -> Iterator[str]:
        """Write the trace as `read_trace` reads it."""
        for event in self.events:
            for node in event.nodes:
                yield f"{round(event.at_s * 1000)},{event.kind},{node}"


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """What a trace is like, in the words of its table."""

    hours: float
    """From the first event to the last."""
    mean_nodes: float
    """Averaged over time."""
    max_nodes: int
    nodes_lost: int
    losses: int
    """Moments at which nodes were lost."""
    multi_node_share: float
    """Share of losses that took more than one node."""
    max_lost_together: int
    mean_s_between_losses: float
    """Length of the trace divided by the number of losses; infinite without any."""
    lost_together: tuple[int, ...]
    """Number of losses that took 1, 2, 3 ... nodes."""


def read_trace(lines: Iterable[str]) -> Trace:
    """Read a trace.

    Args:
        lines: rows `ms,op,node`; empty lines and lines that begin with `#` are skipped.

    Returns:
        The trace, simultaneous rows of one kind grouped.

    Raises:
        DataError: a row is wrong; names line, field, value and remedy.
    """
    groups: list[tuple[int, Kind, list[str]]] = []
    here: set[str] = set()
    touched: set[str] = set()
    now_ms = 0
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        at_ms, kind, node = _read_row(number, text)
        if groups and at_ms < now_ms:
            raise _bad_row(number, "ms", str(at_ms), f"sort the rows: {now_ms} came before it")
        if (node in here) == (kind == "add"):
            remedy = "add it once" if kind == "add" else "add a node before it is removed"
            raise _bad_row(number, "node", node, remedy)
        if at_ms != now_ms or node in touched:
            # A node that goes and comes back at one moment: its second row is a later event.
            touched.clear()
            groups.append((at_ms, kind, []))
        _find_group(groups, at_ms, kind).append(node)
        touched.add(node)
        now_ms = at_ms
        here.symmetric_difference_update((node,))
    return Trace(
        tuple(TraceEvent(ms / 1000, kind, tuple(nodes)) for ms, kind, nodes in groups if nodes)
    )


def measure_trace(trace: Trace) -> TraceStatistics:
    """Compute a trace's statistics."""
    alive = max_nodes = 0
    node_seconds, now_s = 0.0, trace.start_s
    lost: dict[float, int] = {}
    for event in trace.events:
        node_seconds += alive * (event.at_s - now_s)
        now_s = event.at_s
        if event.kind == "add":
            alive += len(event.nodes)
        else:
            alive -= len(event.nodes)
            lost[event.at_s] = lost.get(event.at_s, 0) + len(event.nodes)
        max_nodes = max(max_nodes, alive)
    length_s = trace.end_s - trace.start_s
    most = max(lost.values(), default=0)
    together = tuple(sum(1 for n in lost.values() if n == size) for size in range(1, most + 1))
    return TraceStatistics(
        hours=length_s / 3600,
        mean_nodes=node_seconds / length_s if length_s else float(alive),
        max_nodes=max_nodes,
        nodes_lost=sum(lost.values()),
        losses=len(lost),
        multi_node_share=sum(together[1:]) / len(lost) if lost else 0.0,
        max_lost_together=most,
        mean_s_between_losses=length_s / len(lost) if lost else float("inf"),
        lost_together=together,
    )


def limit_nodes(trace: Trace, most: int) -> Trace:
    """Leave out whatever exceeds a number of nodes.

    A node that joins a full set is left out for good, as when a small testbed replays a large
    trace (Lazarus section 6.4 caps the P3 trace at 10 nodes).
    """
    here: set[str] = set()
    kept: list[TraceEvent] = []
    for event in trace.events:
        if event.kind == "add":
            nodes = event.nodes[: max(0, most - len(here))]
            here.update(nodes)
        else:
            nodes = tuple(node for node in event.nodes if node in here)
            here.difference_update(nodes)
        if nodes:
            kept.append(replace(event, nodes=nodes))
    return Trace(tuple(kept))


# ---------------------------------------------------------------- generators


@dataclass(frozen=True, slots=True)
class SpotProfile:
    """What a spot market does; the defaults are those of the P3 trace."""

    hours: float = P3_HOURS
    max_nodes: int = 32
    """Nodes asked for. The P3 trace began with 18 and never had more than 32."""
    first_nodes: int = 18
    mean_nodes: float = 24.03
    mean_s_between_losses: float = 518.0
    gap_shape: float = 0.78
    """Weibull shape of the gaps between losses beyond one `grid_s`; with it the gaps' standard
    deviation is 1.15 times their mean, as in the P3 trace."""
    lost_together: tuple[float, ...] = (39, 13, 15, 7, 1, 4)
    """Weights of losing 1, 2, 3 ... nodes at once."""
    joined_together: tuple[float, ...] = (49, 15, 8, 6, 1, 2, 1, 1)
    """Weights of 1, 2, 3 ... nodes arriving at once, without the first 18."""
    grid_s: float = 60.0
    """Moments are rounded to this, and two losses are at least this far apart: the P3 trace was
    polled every minute."""


def generate_trace(rng: np.random.Generator, profile: SpotProfile | None = None) -> Trace:
    """Make a trace like the P3 trace.

    Losses come at Weibull gaps and take random nodes. Missing nodes are asked for again: the
    rate of arrivals is proportional to what is missing, such that the average is right.

    Args:
        rng: the only source of randomness.
        profile: the statistics to have; those of the P3 trace if not given.
    """
    profile = profile or SpotProfile()
    lost_sizes, joined_sizes = _Sizes(profile.lost_together), _Sizes(profile.joined_together)
    missing = profile.max_nodes - profile.mean_nodes
    per_missing_s = lost_sizes.mean / profile.mean_s_between_losses / missing / joined_sizes.mean
    end_s = profile.hours * 3600
    alive = [f"node{number}" for number in range(1, profile.first_nodes + 1)]
    events = [TraceEvent(0.0, "add", tuple(alive))]
    born, now_s = len(alive), 0.0
    beyond_s = profile.mean_s_between_losses - profile.grid_s
    loss_at_s = profile.grid_s + _weibull(rng, beyond_s, profile.gap_shape)
    while True:
        rate = per_missing_s * (profile.max_nodes - len(alive))
        join_at_s = now_s + rng.exponential(1 / rate) if rate > 0 else float("inf")
        now_s = min(join_at_s, loss_at_s)
        if now_s > end_s - profile.grid_s:
            return _on_grid(events, profile.grid_s)
        if join_at_s < loss_at_s:
            size = min(joined_sizes.draw(rng), profile.max_nodes - len(alive))
            joined = [f"node{number}" for number in range(born + 1, born + size + 1)]
            born += size
            alive += joined
            events.append(TraceEvent(now_s, "add", tuple(joined)))
        else:
            size = min(lost_sizes.draw(rng), len(alive))
            lost = _take(rng, alive, size)
            if lost:
                events.append(TraceEvent(now_s, "remove", lost))
            loss_at_s += profile.grid_s + _weibull(rng, beyond_s, profile.gap_shape)


@dataclass(frozen=True, slots=True)
class FleetProfile:
    """A fleet whose nodes fail by themselves and with their failure domain."""

    hours: float
    num_nodes: int
    node_mtbf_s: float
    """Mean time between failures of one node."""
    shape: float = 0.78
    """Weibull shape; below 1 means bursts early in life (0.78: SPARe, arXiv 2603.00357)."""
    repair_s: float = 600.0
    """Mean time until a failed node is back under a new name; exponential."""
    domain_nodes: int = 0
    """Nodes that share a failure domain (rack, zone, spot pool); 0 means no domains."""
    domain_mtbf_s: float = float("inf")
    """Mean time between failures of one whole domain."""


def generate_fleet(rng: np.random.Generator, profile: FleetProfile) -> Trace:
    """Make a trace of a fleet with Weibull lifetimes and, if asked for, correlated domains.

    Every place in the fleet holds one node at a time. A place's failure takes its node; a
    domain's failure takes all nodes that are up in it, as one event. A node that comes back
    starts a new life.
    """
    end_s = profile.hours * 3600
    places = range(profile.num_nodes)
    here = {place: f"node{place}.0" for place in places}
    events = [TraceEvent(0.0, "add", tuple(here[place] for place in places))]
    lives = dict.fromkeys(places, 0)
    # (moment, what, index, life): a failure planned for an earlier life no longer counts.
    agenda: list[tuple[float, str, int, int]] = []
    for place in places:
        life_s = _weibull(rng, profile.node_mtbf_s, profile.shape)
        heapq.heappush(agenda, (life_s, "node", place, 0))
    if profile.domain_nodes:
        for domain in range(-(-profile.num_nodes // profile.domain_nodes)):
            gap_s = _weibull(rng, profile.domain_mtbf_s, profile.shape)
            heapq.heappush(agenda, (gap_s, "domain", domain, 0))
    while agenda and agenda[0][0] < end_s:
        at_s, what, index, life = heapq.heappop(agenda)
        if what == "back":
            here[index] = f"node{index}.{life}"
            events.append(TraceEvent(at_s, "add", (here[index],)))
            life_s = _weibull(rng, profile.node_mtbf_s, profile.shape)
            heapq.heappush(agenda, (at_s + life_s, "node", index, life))
            continue
        if what == "domain":
            gap_s = _weibull(rng, profile.domain_mtbf_s, profile.shape)
            heapq.heappush(agenda, (at_s + gap_s, "domain", index, 0))
            first = index * profile.domain_nodes
            hit = [p for p in range(first, first + profile.domain_nodes) if p in here]
        else:
            hit = [index] if lives[index] == life and index in here else []
        if hit:
            events.append(TraceEvent(at_s, "remove", tuple(here.pop(place) for place in hit)))
        for place in hit:
            lives[place] += 1
            back_s = at_s + rng.exponential(profile.repair_s)
            heapq.heappush(agenda, (back_s, "back", place, lives[place]))
    return Trace(tuple(events))


# ---------------------------------------------------------------- helpers


def _read_row(number: int, text: str) -> tuple[int, Kind, str]:
    fields = [field.strip() for field in text.split(",")]
    if len(fields) != 3:
        raise _bad_row(number, "row", text, "write three fields: ms,op,node")
    ms, op, node = fields
    if not (ms.isascii() and ms.isdigit()):
        raise _bad_row(number, "ms", ms, "write whole milliseconds, 0 or more")
    if op not in ("add", "remove"):
        raise _bad_row(number, "op", op, "write add or remove")
    if not node:
        raise _bad_row(number, "node", node, "write the node's name")
    return int(ms), cast(Kind, op), node


def _bad_row(number: int, field: str, value: str, remedy: str) -> DataError:
    return DataError(f"trace line {number}: {field} is {value!r}; {remedy}.")


def _find_group(groups: list[tuple[int, Kind, list[str]]], at_ms: int, kind: Kind) -> list[str]:
    """The last group of this moment and kind, made if it is missing."""
    for group_ms, group_kind, nodes in reversed(groups):
        if group_ms != at_ms:
            break
        if group_kind == kind:
            return nodes
    groups.append((at_ms, kind, []))
    return groups[-1][2]


class _Sizes:
    """How many at once: 1, 2, 3 ... with these weights."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._shares = np.asarray(weights, dtype=float) / sum(weights)
        self.mean = float(self._shares @ np.arange(1, len(weights) + 1))

    def draw(self, rng: np.random.Generator) -> int:
        return 1 + int(rng.choice(len(self._shares), p=self._shares))


def _weibull(rng: np.random.Generator, mean_s: float, shape: float) -> float:
    return float(mean_s / gamma(1 + 1 / shape) * rng.weibull(shape))


def _take(rng: np.random.Generator, alive: list[str], size: int) -> tuple[str, ...]:
    """Remove random nodes from the list of the living."""
    picked = sorted(rng.choice(len(alive), size, replace=False), reverse=True)
    return tuple(alive.pop(int(place)) for place in picked)


def _on_grid(events: Sequence[TraceEvent], grid_s: float) -> Trace:
    """Round moments up to a grid and group again what now falls together."""
    moved = [replace(event, at_s=-(-event.at_s // grid_s) * grid_s) for event in events]
    return read_trace(Trace(tuple(moved)).lines())
