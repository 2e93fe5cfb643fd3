"""The process groups of one generation: formed together, broken at once.

The only place that knows the communication library: gloo on CPU, NCCL on CUDA. Groups are
built straight on a store, without torch's global default group, so that a new generation can
form beside the rubble of the old one.

What gloo needs (measured, torch 2.13): a dead peer is seen by everybody in all-to-all and
barrier, but only by its neighbours in the ring collectives, so only the former are used. A
blocked operation is freed by shutting down the group's own connected sockets, and even then
sometimes hangs in `Work.wait()`; so every wait here polls the work together with the "this
generation is over" flag. What a broken generation leaves (six threads and nine descriptors with
two groups) is freed by a thread that nobody waits for: the group's destructor joins its threads,
and hangs with an operation that does: about once in 30 breaks on a busy machine, a gloo barrier
waits on for a send that was cut off. Only the library's own timeout ends that.
"""

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from elasticmoe.errors import GangBrokenError
from elasticmoe.plan.types import Plan
from elasticmoe.vault.pulse import Pulse

LONGEST_WAIT = timedelta(minutes=30)
"""Broken generations are ended by their flag, not by the library's timeout: longer than anybody is
patient (10 minutes), and short enough that what hangs in a broken group does not pile up."""
LONGEST_POLL_S: Final = 5e-4
_graveyard: list[object] = []
"""Abandoned work and what it reads and writes; buried together with its group."""
_c10d: Any = dist
"""Its compiled classes are not all in its type stubs."""


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the members of one generation meet."""

    host: str
    port: int
    generation: int


class Over:
    """The flag that ends a generation on this member; set once, from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def set(self, reason: str) -> None:
        """End the generation; the first reason stays."""
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    def check(self) -> None:
        """Raise `GangBrokenError` if the generation is over."""
        if self._event.is_set():
            raise GangBrokenError(self.reason)


class Pending:
    """An operation that was started; `wait` is the only way to its result."""

    def __init__(self, work: Any, over: Over, keep: tuple[Tensor, ...], *, poll: bool) -> None:
        self._work, self._over, self._keep, self._poll = work, over, keep, poll

    def wait(self) -> None:
        """Wait for the end of the operation.

        Raises:
            GangBrokenError: the generation ended first, or a peer is gone.
        """
        if self._work is None:
            return
        try:
            if self._poll:
                self._wait_polling()
            self._work.wait()  # returns at once after polling; raises what went wrong
        except GangBrokenError:
            _graveyard.append((self._work, self._keep))
            raise
        except RuntimeError as error:
            reason = f"a collective failed: {_first_sentence(error)}"
            self._over.set(reason)
            raise GangBrokenError(reason) from error
        self._work, self._keep = None, ()

    def _wait_polling(self) -> None:
        pause_s = 2e-5
        while not self._work.is_completed():
            self._over.check()
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_POLL_S)


class _ThreadWait:
    """Makes a gloo send or receive pollable: their works never say that they completed."""

    def __init__(self, work: Any) -> None:
        self._work, self._done = work, False
        self._error: RuntimeError | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._work.wait()
        except RuntimeError as error:
            self._error = error
        self._done = True

    def is_completed(self) -> bool:
        return self._done

    def wait(self) -> None:
        if self._error is not None:
            raise self._error


class Group:
    """One process group of a generation, as this member sees it."""

    def __init__(
        self,
        backend: Any,
        rank: int,
        size: int,
        over: Over,
        *,
        is_cuda: bool,
        pulse: Pulse | None = None,
    ) -> None:
        self.rank, self.size = rank, size
        self._backend, self._over, self._is_cuda = backend, over, is_cuda
        self._pulse = pulse

    def all_to_all(
        self, output: Tensor, source: Tensor, received: Sequence[int], sent: Sequence[int]
    ) -> None:
        """Send consecutive rows of `source` to each rank, and fill `output`.

        Args:
            output: room for the received rows, ordered by rank.
            source: rows to send, ordered by rank.
            received: rows from each rank.
            sent: rows to each rank.

        Raises:
            GangBrokenError: the generation ended first.
        """
        self._over.check()
        if self.size == 1:
            output.copy_(source)
            return
        work = self._start(
            "alltoall_base", output, source, list(received), list(sent), _c10d.AllToAllOptions()
        )
        Pending(work, self._over, (output, source), poll=not self._is_cuda).wait()

    def gather(self, record: Tensor) -> Tensor:
        """Collect everybody's record; [size, *record.shape], in rank order, on every rank."""
        if self.size == 1:
            return record.unsqueeze(0).clone()
        flat = record.reshape(1, -1).expand(self.size, -1).contiguous()
        gathered = torch.empty_like(flat)
        ones = [1] * self.size
        self.all_to_all(gathered, flat, ones, ones)
        return gathered.view(self.size, *record.shape)

    def barrier(self) -> None:
        """Return when every member has entered."""
        self._over.check()
        if self.size > 1:
            work = self._start("barrier", _c10d.BarrierOptions())
            Pending(work, self._over, (), poll=not self._is_cuda).wait()

    def send(self, tensor: Tensor, to: int, tag: int) -> Pending:
        """Start sending a contiguous tensor to one rank."""
        return self._point_to_point("send", tensor, to, tag)

    def receive(self, tensor: Tensor, source: int, tag: int) -> Pending:
        """Start receiving into a contiguous tensor from one rank."""
        return self._point_to_point("recv", tensor, source, tag)

    def forget(self) -> None:
        """Let go of the library's group, so that whoever buries it holds it alone."""
        self._backend = None

    def _point_to_point(self, kind: str, tensor: Tensor, peer: int, tag: int) -> Pending:
        self._over.check()
        work = self._start(kind, [tensor], peer, tag)
        if not self._is_cuda:
            work = _ThreadWait(work)
        return Pending(work, self._over, (tensor,), poll=not self._is_cuda)

    def _start(self, operation: str, *arguments: Any) -> Any:
        if self._pulse is not None:
            self._pulse.count_collective()
        try:
            return getattr(self._backend, operation)(*arguments)
        except RuntimeError as error:
            reason = f"{operation} could not start: {_first_sentence(error)}"
            self._over.set(reason)
            raise GangBrokenError(reason) from error


class Groups:
    """The world group, this member's stage group (with one stage it is the world) and the pipes
    between stages."""

    def __init__(
        self,
        plan: Plan,
        member: int,
        rendezvous: Rendezvous,
        device: torch.device,
        over: Over,
        pulse: Pulse | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """Form the groups together with all other members.

        Args:
            over: abandons the attempt.
            pulse: counts the collectives that this member enters.
            meanwhile: what this member can do while it waits for the others.

        Raises:
            GangBrokenError: the generation ended before everybody had come.
        """
        self.over, self._pulse = over, pulse
        self._is_cuda = device.type == "cuda"
        self._backends: list[Any] = []
        self._made: list[Group] = []
        self._sockets: list[socket.socket] = []
        self._failure: BaseException | None = None
        former = threading.Thread(
            target=self._form, args=(plan, member, rendezvous), daemon=True, name="form-groups"
        )
        former.start()
        meanwhile()
        while former.is_alive():
            former.join(0.001)
            over.check()  # the thread is abandoned with its half-formed groups
        if self._failure is not None:
            over.set(f"the groups could not be formed: {self._failure}")
        over.check()

    def _form(self, plan: Plan, member: int, rendezvous: Rendezvous) -> None:
        try:
            before = set(_connected_sockets())
            num_members = len(plan.members)
            stage_index = plan.stage_of_member[member]
            stage = plan.stages[stage_index]
            store: Any = None
            if num_members > 1:
                store = _c10d.TCPStore(
                    rendezvous.host, rendezvous.port, None, False, timeout=LONGEST_WAIT
                )
            prefix = f"generation-{rendezvous.generation}"
            device = None
            if num_members > 1 and not self._is_cuda:  # one thread and one port for all groups
                device = _gloo_device(rendezvous)

            def group(name: str, rank: int, size: int) -> Group:
                backend = None
                if size > 1:
                    space = _c10d.PrefixStore(f"{prefix}/{name}", store)
                    backend = _new_backend(space, rank, size, device)
                    self._backends.append(backend)
                made = Group(
                    backend, rank, size, self.over, is_cuda=self._is_cuda, pulse=self._pulse
                )
                self._made.append(made)
                return made

            self.world = group("world", member, num_members)
            if stage.members == tuple(range(num_members)):
                self.stage = self.world
            else:
                rank = stage.members.index(member)
                self.stage = group(f"stage-{stage_index}", rank, len(stage.members))
            # NCCL matches point-to-point messages by order, not by tag: one group a direction.
            split = self._is_cuda and len(plan.stages) > 1
            self.forward_pipe = group("forward", member, num_members) if split else self.world
            self.backward_pipe = group("backward", member, num_members) if split else self.world
            self._store = store
            self._sockets = [
                socket.socket(fileno=os.dup(number))
                for inode, number in _connected_sockets().items()
                if inode not in before
            ]
        except Exception as error:  # re-raised as the reason why the generation is over
            self._failure = error

    def break_now(self, reason: str) -> None:
        """End the generation on this member: free whoever waits here, at once."""
        self.over.set(reason)
        for backend in self._backends if self._is_cuda else ():
            backend.abort()
        for connection in self._sockets:
            with suppress(OSError):  # the peer may have closed it already
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the groups; what hangs in them is never waited for."""
        self.break_now(self.over.reason or "the groups were closed")
        for connection in self._sockets:
            connection.close()
        for group in self._made:
            group.forget()
        remains = [*self._backends, *_graveyard]
        _graveyard.clear()
        self._backends, self._sockets, self._made = [], [], []
        if remains:
            threading.Thread(target=_bury, args=(remains,), daemon=True, name="burial").start()


def _bury(remains: list[object]) -> None:
    """Free what a broken generation left behind, groups first: their destructors wait, without the
    interpreter's lock, for operations that still run and use what is freed after them."""
    while remains:
        del remains[0]


def _new_backend(store: Any, rank: int, size: int, gloo_device: Any) -> Any:
    """One group of gloo, or of NCCL where there is no device of gloo."""
    if gloo_device is None:
        options = _c10d.ProcessGroupNCCL.Options()
        options._timeout = LONGEST_WAIT
        return _c10d.ProcessGroupNCCL(store, rank, size, options)
    gloo = _c10d.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = LONGEST_WAIT
    options._devices = [gloo_device]
    options._threads = 2
    return gloo(store, rank, size, options)


def _gloo_device(rendezvous: Rendezvous) -> Any:
    host = _own_address(rendezvous)
    return _c10d.ProcessGroupGloo.create_device(hostname=host, lazy_init=False)


def _first_sentence(error: RuntimeError) -> str:
    return str(error).splitlines()[0].split(". ")[0]


def _own_address(rendezvous: Rendezvous) -> str:
    """This host's address as the store's host sees it: peers can reach it there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((rendezvous.host, rendezvous.port))
        return str(probe.getsockname()[0])


def _connected_sockets() -> dict[int, int]:
    """Descriptors of this process that are connected TCP sockets, by inode: new ones get the
    numbers of those that are closed meanwhile, where an older generation is buried. Listening ones
    stay out: shutting gloo's listener down aborts the process."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        with suppress(OSError):
            status = os.fstat(number)
            if stat.S_ISSOCK(status.st_mode):
                probe = socket.socket(fileno=os.dup(number))
                with probe:
                    if probe.family in (socket.AF_INET, socket.AF_INET6):
                        probe.getpeername()
                        found[status.st_ino] = number
    return found
