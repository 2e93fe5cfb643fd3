"""A worker's end of the line to its agent: reports out, commands in."""

import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from elasticmoe.messages.codec import by_name, from_line, to_line
from elasticmoe.messages.worker import (
    BreakGang,
    FormGang,
    Instruct,
    WorkerCommand,
    WorkerReport,
)
from elasticmoe.runtime.groups import Over

_COMMANDS = by_name(WorkerCommand)


@dataclass(slots=True)
class Current:
    """The generation this worker is in, or was told to join next."""

    generation: int
    over: Over
    breaker: Any
    """`Groups.break_now` once the groups exist."""


def name_thread(name: str) -> None:
    """Show whoever looks at this process's threads (`top -H`) what the calling one does."""
    Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)


class Mailbox:
    """Sends reports at once; a thread of its own takes commands, so that a generation can be
    broken while training is stuck in a collective."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._sending = sock, threading.Lock()
        self._forms: SimpleQueue[FormGang] = SimpleQueue()
        self._instructions: dict[int, Instruct] = {}
        self.current: Current | None = None
        self.newest = 0
        """Newest command such that it and all before it have arrived."""
        self.step = 0
        self.on_peer_died: Callable[[int, str], None] = _nothing_to_do
        """Told of a generation that a death has ended, and why it is left, once it is broken."""
        threading.Thread(target=self._listen, daemon=True, name="mailbox").start()

    def send(self, report: WorkerReport) -> None:
        """Report to the agent. Nobody trains for nobody: without one this process ends."""
        try:
            with self._sending:
                self._sock.sendall(to_line(report))
        except OSError:
            os._exit(0)

    def next_form(self) -> tuple[FormGang, Current]:
        """Wait for the order to join a generation."""
        form = self._forms.get()
        current = self.current
        while current is None or current.generation != form.generation:
            form = self._forms.get()  # a newer order has overtaken this one
            current = self.current
        return form, current

    def take(self, upto: int, after: int) -> list[Instruct]:
        """Commands numbered (after, upto], in order."""
        return [self._instructions[number] for number in range(after + 1, upto + 1)]

    def _listen(self) -> None:
        name_thread("mailbox")
        with self._sock.makefile("rb") as lines:
            for line in lines:
                self._obey(from_line(_COMMANDS, line))
        os._exit(0)  # the agent is gone

    def _obey(self, command: FormGang | BreakGang | Instruct) -> None:
        current = self.current
        known = current.generation if current else 0
        if command.generation < known:
            return
        if isinstance(command, FormGang):
            if command.generation == known:
                return  # repeated by a controller that took over
            self._leave(f"generation {command.generation} follows")
            self._instructions.clear()
            self.newest = command.first_command - 1
            self.current = Current(command.generation, Over(), None)
            self._forms.put(command)
        elif isinstance(command, BreakGang):
            reason = "a member has died" if command.peer_died else "the generation was ended"
            self._leave(reason)
            if command.peer_died and command.generation == known:
                self.on_peer_died(known, reason)
        elif command.generation == known:
            self._instructions[command.number] = command
            while self.newest + 1 in self._instructions:
                self.newest += 1

    def _leave(self, reason: str) -> None:
        if self.current is not None:
            self.current.over.set(reason)
            if self.current.breaker is not None:
                self.current.breaker(reason)


def _nothing_to_do(generation: int, reason: str) -> None:
    return
