"""Machines, their agents and the workers on them, as the pretend world keeps them."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from elasticmoe.messages.events import Event
from elasticmoe.simulator.gang import Gang
from elasticmoe.simulator.vaults import Vault

NUM_RECENT = 2
"""Reports that an agent repeats when its controller died before it answered."""


@dataclass(slots=True)
class Process:
    """A worker's process."""

    number: int
    node: "Node"
    ready: bool = False
    dead: bool = False
    """Ended, perhaps not yet reaped."""
    hung: bool = False
    """Stopped: its heart does not beat."""
    stuck: bool = False
    """Its heart beats, but it does nothing it is told."""
    told: int = 0
    """Newest generation that its agent sent it."""
    gang: Gang | None = None
    """The generation it is in."""
    leaving: Gang | None = None
    """The generation it is on its way out of."""
    phase: str = ""
    """What it did when it left."""
    free_s: float = 0.0
    """Until then it is busy leaving its last generation."""
    step: int = 0
    vault: Vault | None = None


@dataclass(slots=True)
class Node:
    """A machine with an agent."""

    name: str
    domain: str
    capacity: int
    memory_bytes: int = 0
    """0: not known, and nothing is refused for want of it."""
    alive: bool = True
    """The machine runs."""
    agent: bool = True
    """Its agent runs."""
    attached: bool = False
    """The controller knows it."""
    given_up: bool = False
    """The controller declared it lost: this incarnation never comes back."""
    cut: bool = False
    """No message passes between agent and controller."""
    slow: float = 1.0
    """How much longer its workers take."""
    broken: int = 0
    """Newest generation whose end it told its workers."""
    term: int = 0
    """Newest controller that spoke to it."""
    processes: dict[int, Process] = field(default_factory=dict)
    vaults: dict[int, Vault] = field(default_factory=dict)
    """By the worker whose own it is, or was."""
    heirs: dict[int, int] = field(default_factory=dict)
    """Dead worker -> whose vault its own is now."""
    backlog: list[Event] = field(default_factory=list)
    """Reports that wait for a controller."""
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=NUM_RECENT))
    """Reports that were accepted last."""
    held: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    """Commands that wait for the link: term, what to do."""
    arrival_s: dict[int, float] = field(default_factory=dict)
    """When each worker's last report arrives: they keep their order."""

    @property
    def runs(self) -> bool:
        """Whether its agent could answer."""
        return self.alive and self.agent

    @property
    def reachable(self) -> bool:
        """Whether controller and agent hear each other."""
        return self.runs and self.attached and not self.cut and not self.given_up

    def vault_of(self, worker: int) -> Vault | None:
        """The vault of a worker, or the one that came of it."""
        while worker in self.heirs:
            worker = self.heirs[worker]
        return self.vaults.get(worker)

    def inherit(self, heir: int, dead: int) -> None:
        """Make a dead worker's vault the heir's own; harmless if it is already."""
        owner = dead
        while owner in self.heirs:
            owner = self.heirs[owner]
        if owner != heir:
            self.vaults[heir] = self.vaults.pop(owner)
            self.heirs[owner] = heir

    def forget(self, worker: int) -> None:
        """Give up a dead worker's vault; what an heir has taken over stays with it."""
        self.heirs.pop(worker, None)
        if self.vaults.pop(worker, None) is not None:
            self.heirs = {dead: heir for dead, heir in self.heirs.items() if heir != worker}

    def living(self) -> list[Process]:
        """Processes that have not ended."""
        return [process for process in self.processes.values() if not process.dead]
