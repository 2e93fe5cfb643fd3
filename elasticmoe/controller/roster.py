"""The worker processes that are not known to be dead, looked up by number, status and node."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from elasticmoe.controller.number_map import NumberMap


class WorkerStatus(Enum):
    """What a living worker is doing."""

    STARTING = "starting"
    IDLE = "idle"
    """Ready for a generation: fresh, parked, or at the end of its gang."""
    BUSY = "busy"
    """In the current generation."""
    LEAVING = "leaving"
    """Failed, or about to be killed; keeps its place until its death is reported."""

    __hash__ = object.__hash__
    """That of `Enum` is the name's, found by a call: too slow for what is looked up so often."""


LIVING: Final = (WorkerStatus.STARTING, WorkerStatus.IDLE, WorkerStatus.BUSY)
"""Workers that the next generation can count on."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker process that is not known to be dead."""

    number: int
    node: str
    status: WorkerStatus
    since_s: float
    """Start of this status."""
    pid: int = 0


class Roster(Mapping[int, Worker]):
    """Frozen: `with_workers` and `without` make another one, at a cost that hardly grows."""

    __slots__ = ("_by_number", "_by_status", "_on_node")

    def __init__(self) -> None:
        self._by_number: NumberMap[Worker] = NumberMap()
        self._by_status: dict[WorkerStatus, NumberMap[None]] = {
            status: NumberMap() for status in WorkerStatus
        }
        self._on_node: dict[str, tuple[int, ...]] = {}

    def __getitem__(self, number: int) -> Worker:
        return self._by_number[number]

    def __contains__(self, number: object) -> bool:
        return number in self._by_number

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_number)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Roster):
            return self._by_number == other._by_number
        return dict(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Roster({dict(self)})"

    def count(self, *statuses: WorkerStatus) -> int:
        """How many workers have one of these statuses."""
        return sum(len(self._by_status[status]) for status in statuses)

    def having(self, *statuses: WorkerStatus) -> tuple[Worker, ...]:
        """Workers with one of these statuses, by number."""
        numbers = sorted(number for status in statuses for number in self._by_status[status])
        return tuple(self._by_number[number] for number in numbers)

    def first(self, status: WorkerStatus) -> Worker | None:
        """The worker with the lowest number that has a status."""
        number = next(iter(self._by_status[status]), None)
        return None if number is None else self._by_number[number]

    @property
    def by_node(self) -> Mapping[str, tuple[int, ...]]:
        """Numbers of the workers on each node that has some, ascending."""
        return self._on_node

    def on_node(self, node: str) -> tuple[int, ...]:
        """Numbers of the workers on a node, ascending."""
        return self._on_node.get(node, ())

    def with_workers(self, workers: Iterable[Worker]) -> "Roster":
        """The same with workers added or changed; a worker never changes its node."""
        changed = tuple(workers)
        made = self._copied(self._by_number.with_items((one.number, one) for one in changed))
        moved: dict[WorkerStatus, list[int]] = {}
        entered: dict[WorkerStatus, list[int]] = {}
        settled: dict[str, list[int]] = {}
        for worker in changed:
            before = self._by_number.get(worker.number)
            if before is None:
                settled.setdefault(worker.node, []).append(worker.number)
            elif before.status is not worker.status:
                moved.setdefault(before.status, []).append(worker.number)
            if before is None or before.status is not worker.status:
                entered.setdefault(worker.status, []).append(worker.number)
        for status, numbers in moved.items():
            made._by_status[status] = made._by_status[status].without(numbers)
        for status, numbers in entered.items():
            made._by_status[status] = made._by_status[status].with_items(
                (number, None) for number in numbers
            )
        if settled:
            new = {node: (*self.on_node(node), *numbers) for node, numbers in settled.items()}
            made._on_node = {
                **self._on_node,
                **{node: tuple(sorted(numbers)) for node, numbers in new.items()},
            }
        return made

    def without(self, numbers: Iterable[int]) -> "Roster":
        """The same without some workers; those that are not there are left out."""
        gone = [self._by_number[number] for number in set(numbers) if number in self._by_number]
        if not gone:
            return self
        made = self._copied(self._by_number.without(worker.number for worker in gone))
        for status in {worker.status for worker in gone}:
            made._by_status[status] = made._by_status[status].without(
                worker.number for worker in gone
            )
        made._on_node = dict(self._on_node)
        for worker in gone:
            left = tuple(one for one in made._on_node[worker.node] if one != worker.number)
            made._on_node[worker.node] = left
            if not left:
                del made._on_node[worker.node]
        return made

    def _copied(self, by_number: NumberMap[Worker]) -> "Roster":
        made = Roster.__new__(Roster)
        made._by_number = by_number
        made._by_status, made._on_node = dict(self._by_status), self._on_node
        return made
