"""Timetables of whole pipelines, and how long they take.

Zero-bubble (ZB1P) and DualPipe are data and cost only: what a job would gain by them can be read
before anyone builds them.

Letters: P = stages, as many as workers that wait for each other.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from elasticmoe.plan.schedule import Durations
from elasticmoe.plan.types import Op

Phase = Literal["forward", "backward", "input_grad", "weight_grad", "overlapped"]
"""`backward` = `input_grad` + `weight_grad`; `overlapped`: a forward and a backward of two waves
that run at once."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a worker's timetable."""

    phase: Phase
    wave: int
    """The wave; of `overlapped`, the one whose forward runs."""
    part: int
    """The part of the network, 0 .. P - 1; DualPipe's workers hold two each."""
    backward_wave: int = -1
    """Of `overlapped`: the wave whose backward runs."""
    backward_part: int = -1


Timetable = tuple[Entry, ...]
_Done = tuple[str, int, int]
"""Direction (`forward`, `backward`, `weight_grad`), wave and part of something computed."""


def from_ops(timetables: Sequence[Sequence[Op]]) -> tuple[Timetable, ...]:
    """The executed timetables of a plan's stages."""
    return tuple(
        tuple(Entry(op.kind, op.wave, stage) for op in ops) for stage, ops in enumerate(timetables)
    )


def plan_zb1p(num_stages: int, num_waves: int) -> tuple[Timetable, ...]:
    """Zero-bubble 1F1B: weight gradients fill the gaps, in the memory of 1F1B's first stage.

    Stage s computes each weight gradient s waves after its input gradient.

    Source: Qi et al. 2023, arXiv:2401.10241 (ZB-H1).
    """
    tables: list[Timetable] = []
    for stage in range(num_stages):
        ahead = min(num_stages - 1 - stage, num_waves)
        entries = [Entry("forward", wave, stage) for wave in range(ahead)]
        for wave in range(num_waves):
            if ahead + wave < num_waves:
                entries.append(Entry("forward", ahead + wave, stage))
            entries.append(Entry("input_grad", wave, stage))
            if wave >= stage:
                entries.append(Entry("weight_grad", wave - stage, stage))
        late = range(max(num_waves - stage, 0), num_waves)
        entries += [Entry("weight_grad", wave, stage) for wave in late]
        tables.append(tuple(entries))
    return tuple(tables)


def plan_dualpipe(num_stages: int, num_waves: int) -> tuple[Timetable, ...]:
    """Feed waves from both ends; each worker holds two parts and overlaps their phases.

    Args:
        num_stages: even; worker w holds parts w and P - 1 - w.
        num_waves: even, at least 2 P. The first half enters at worker 0, the others at the last.

    Source: DeepSeek-V3, arXiv:2412.19437, section 3.2.1, and deepseek-ai/DualPipe (MIT).
    """
    assert num_stages % 2 == 0
    assert num_waves % 2 == 0
    assert num_waves >= 2 * num_stages
    return tuple(
        _DualPipeWorker(worker, num_stages, num_waves).write() for worker in range(num_stages)
    )


class _DualPipeWorker:
    """Writes one worker's timetable; direction 0 is the one whose end is nearer."""

    def __init__(self, worker: int, num_stages: int, num_waves: int) -> None:
        half = num_waves // 2
        here, mirrored = (worker, range(half)), (num_stages - 1 - worker, range(half, num_waves))
        near, far = (here, mirrored) if worker < num_stages // 2 else (mirrored, here)
        self._part = (near[0], far[0])
        self._forwards = (deque(near[1]), deque(far[1]))
        self._backwards = (deque(near[1]), deque(far[1]))
        self._late: deque[tuple[int, int]] = deque()
        self._entries: list[Entry] = []
        self._from_end = min(worker, num_stages - 1 - worker)
        self._to_middle = num_stages // 2 - 1 - self._from_end
        self._rounds = half - num_stages + self._from_end + 1

    def write(self) -> Timetable:
        """The eight steps of the published schedule."""
        for _ in range(2 * self._to_middle):
            self._forward(0)
        for _ in range(self._from_end + 1):
            self._forward(0)
            self._forward(1)
        for _ in range(self._to_middle):
            self._input_grad(1)
            self._weight_grad()
            self._forward(1)
        for turn in range(self._rounds):
            if turn == 0 and self._to_middle == 0:  # the middle waits for itself: no overlap
                self._forward(0)
                self._backward(1)
            else:
                self._overlapped(0)
            self._overlapped(1)
        for _ in range(self._to_middle):
            self._backward(1)
            self._overlapped(1)
        self._drain()
        return tuple(self._entries)

    def _drain(self) -> None:
        steps, splits = self._from_end + 1, False
        for turn in range(steps):
            for direction in (1, 0):
                first_split = 1 if self._from_end % 2 else 0
                splits = splits or (turn == steps // 2 and direction == first_split)
                if splits:
                    self._input_grad(direction)
                else:
                    self._backward(direction)
        for _ in range(self._to_middle):
            self._weight_grad()
            self._input_grad(0)
        while self._late:
            self._weight_grad()

    def _forward(self, direction: int) -> None:
        wave = self._forwards[direction].popleft()
        self._entries.append(Entry("forward", wave, self._part[direction]))

    def _backward(self, direction: int) -> None:
        wave = self._backwards[direction].popleft()
        self._entries.append(Entry("backward", wave, self._part[direction]))

    def _input_grad(self, direction: int) -> None:
        wave, part = self._backwards[direction].popleft(), self._part[direction]
        self._entries.append(Entry("input_grad", wave, part))
        self._late.append((wave, part))

    def _weight_grad(self) -> None:
        self._entries.append(Entry("weight_grad", *self._late.popleft()))

    def _overlapped(self, direction: int) -> None:
        forward, backward = self._forwards[direction], self._backwards[1 - direction]
        part, other = self._part[direction], self._part[1 - direction]
        self._entries.append(
            Entry("overlapped", forward.popleft(), part, backward.popleft(), other)
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What a simulation of a pipeline found."""

    end: float
    """When the last worker has finished."""
    busy: tuple[float, ...]
    """Time each worker computes."""

    @property
    def waiting_share(self) -> float:
        """Waiting time as share of all workers' time."""
        return 1 - sum(self.busy) / (self.end * len(self.busy))


def simulate(timetables: Sequence[Timetable], durations: Sequence[Durations]) -> Run:
    """Play timetables through; sending takes no time.

    Args:
        timetables: per worker; part p of the network runs after part p - 1.
        durations: per worker.

    Raises:
        ValueError: the timetables wait for each other forever, or compute something out of order.
    """
    last_part = max(entry.part for table in timetables for entry in table)
    ended: dict[_Done, float] = {}
    clock, busy = [0.0] * len(timetables), [0.0] * len(timetables)
    position = [0] * len(timetables)
    left = sum(len(table) for table in timetables)
    while left:
        before = left
        for worker, table in enumerate(timetables):
            while position[worker] < len(table):
                entry = table[position[worker]]
                needs = _needs(entry, last_part)
                if any(need not in ended for need in needs):
                    break
                length = _length(entry, durations[worker])
                start = max([clock[worker], *(ended[need] for need in needs)])
                clock[worker] = start + length
                busy[worker] += length
                ended.update(dict.fromkeys(_gives(entry), clock[worker]))
                position[worker] += 1
                left -= 1
        if left == before:
            stuck = [
                table[at] for table, at in zip(timetables, position, strict=True) if at < len(table)
            ]
            raise ValueError(f"the timetables wait for each other forever at {stuck}")
    return Run(max(clock), tuple(busy))


def _length(entry: Entry, durations: Durations) -> float:
    if entry.phase == "input_grad":
        return durations.backward - durations.weight_grad
    lengths = {
        "forward": durations.forward,
        "backward": durations.backward,
        "weight_grad": durations.weight_grad,
        "overlapped": durations.overlapped,
    }
    return lengths[entry.phase]


def _needs(entry: Entry, last_part: int) -> list[_Done]:
    """What must have ended before an entry can begin."""
    needs: list[_Done] = []
    if entry.phase in ("forward", "overlapped") and entry.part > 0:
        needs.append(("forward", entry.wave, entry.part - 1))
    if entry.phase == "weight_grad":
        needs.append(("backward", entry.wave, entry.part))
    if entry.phase in ("backward", "input_grad", "overlapped"):
        paired = entry.phase == "overlapped"
        wave = entry.backward_wave if paired else entry.wave
        part = entry.backward_part if paired else entry.part
        needs.append(("forward", wave, part))
        if part < last_part:
            needs.append(("backward", wave, part + 1))
    return needs


def _gives(entry: Entry) -> list[_Done]:
    """What an entry completes, for others to build on."""
    if entry.phase == "overlapped":
        return [
            ("forward", entry.wave, entry.part),
            ("backward", entry.backward_wave, entry.backward_part),
            ("weight_grad", entry.backward_wave, entry.backward_part),
        ]
    if entry.phase == "backward":
        return [(kind, entry.wave, entry.part) for kind in ("backward", "weight_grad")]
    kind = "backward" if entry.phase == "input_grad" else entry.phase
    return [(kind, entry.wave, entry.part)]
