"""The node agent: forks workers, passes messages on, sees deaths, leaves nothing behind.

Plain asyncio, so that it can be tested without Ray; `agent_actor` is the thin Ray shell. The
agent decides nothing, with one reflex: at the first sign that a generation is over it tells its
own workers, because with gloo nobody else would (a dead peer is seen by its neighbours only).
"""

import asyncio
import json
import os
import socket
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from elasticmoe.cluster.agent_config import AgentConfig
from elasticmoe.cluster.clerks import Clerks
from elasticmoe.cluster.forking import WarmParentLink, WarmParentListener, spawn_warm_parent
from elasticmoe.cluster.outbox import Deliver, Outbox
from elasticmoe.cluster.starter import Starter
from elasticmoe.cluster.stores import StoreKeeper
from elasticmoe.cluster.vault_keeper import VaultKeeper
from elasticmoe.cluster.warm_parent import MAX_LINE_BYTES, ForkRequest
from elasticmoe.cluster.watch import HeartbeatWatch, Sign
from elasticmoe.cluster.worker_process import Worker, core_waits, is_stopped
from elasticmoe.errors import ClusterError
from elasticmoe.messages.codec import to_line
from elasticmoe.messages.events import NodeUp, WorkerDied, WorkerSilent
from elasticmoe.messages.worker import BreakGang, WorkerParked, WorkerReady
from elasticmoe.telemetry.log import get_log

log = get_log(__name__)

DRAIN_TIMEOUT_S: Final = 0.2
"""A dead worker's last words are in the socket already; a grandchild may keep it open, though."""


class Agent:
    """Runs the workers of one job on one node."""

    def __init__(self, config: AgentConfig, deliver: Deliver) -> None:
        """Start the warm parent at once: it needs more than a second, and everybody waits for it.

        Args:
            config: this node's part of the job.
            deliver: hands lines to the controller and returns whether this node still belongs
                to the job; raises `ConnectionError` where no controller answers.
        """
        os.makedirs(config.log_dir, exist_ok=True)
        self.config = config
        self.over = asyncio.Event()
        """Set when the agent has ended itself; its process should end too."""
        self._outbox = Outbox(deliver, config.patience_s)
        self._workers: dict[int, Worker] = {}
        self._broken = 0
        self._log_file = os.path.join(config.log_dir, f"agent-{config.node}.log")
        self._clerks = Clerks(config.job, self._log_file, self._fork)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._link: WarmParentLink | None = None
        self._warm_name = config.warm_parent or self._spawn()
        self._was_warm = False
        self._gone_because = ""
        self._stores = StoreKeeper(config.host, self._fork)
        self._starter = Starter(config.job, config.entry, self._fork)
        self._vaults = VaultKeeper()
        self._watch = HeartbeatWatch(is_stopped, core_waits)

    async def start(self) -> None:
        """Connect to the warm parent, begin to deliver reports and to watch heartbeats."""
        self._connect()
        self._spawn_task(self._run_outbox())
        self._spawn_task(self._watch_heartbeats())

    def is_answered(self) -> bool:
        """See `Outbox.is_answered`."""
        return self._outbox.is_answered()

    def facts(self) -> list[bytes]:
        """What a controller that has just taken over must know, as lines of events."""
        self._outbox.heard()
        config = self.config
        place = config.node, config.domain, config.host, config.capacity
        up = NodeUp(0.0, *place, config.memory_bytes, len(config.devices))
        ready = [WorkerReady(w.number, w.pid) for w in self._workers.values() if w.ready]
        return [to_line(message) for message in (up, *ready)]

    async def start_workers(self, workers: tuple[int, ...]) -> None:
        """Fork workers; each reports `WorkerReady`, or `WorkerDied`. Known numbers are left alone.

        Raises:
            ClusterError: no room is left on this node.
        """
        self._outbox.heard()
        for number in workers:
            if number not in self._workers:
                if len(self._workers) >= self.config.capacity:
                    raise ClusterError(
                        f"node {self.config.node} runs {len(self._workers)} workers already, "
                        f"worker {number} is one more than it was granted"
                    )
                await self._start_worker(number)

    def kill_workers(self, workers: tuple[int, ...]) -> None:
        """End workers at once, whatever they do."""
        self._outbox.heard()
        for number in workers:
            if number in self._workers:
                self._workers[number].kill()

    async def form(self, generation: int, lines: Mapping[int, bytes]) -> None:
        """Send members their `FormGang`, once each. One that is dead is being reported.

        Args:
            generation: that the lines are of.
            lines: by worker; the files of vaults are filled in here.

        Raises:
            ClusterError: a vault that the lines count on is not here; nobody was told anything.
        """
        self._outbox.heard()
        new = {
            number: line
            for number, line in lines.items()
            if number in self._workers and self._workers[number].generation < generation
        }
        for number, line in self._vaults.complete(new, living=self._workers).items():
            self._workers[number].generation = generation
            self._workers[number].writer.write(line)

    def forget_vaults(self, workers: tuple[int, ...]) -> None:
        """Give up what dead workers left behind."""
        self._outbox.heard()
        self._vaults.forget(set(workers) - set(self._workers))

    def instruct(self, generation: int, line: bytes) -> None:
        """Send an `Instruct` to every local member of the generation."""
        self._outbox.heard()
        for worker in self._workers.values():
            if worker.generation == generation:
                worker.writer.write(line)

    async def open_store(self, generation: int) -> tuple[str, int]:
        """Open the rendezvous store of a generation and return its host and port.

        Raises:
            ClusterError: the store's process could not be started.
        """
        self._outbox.heard()
        return self.config.host, await self._stores.open(generation)

    async def break_generation(
        self, generation: int, members: tuple[int, ...], *, peer_died: bool = False
    ) -> None:
        """Tell every local member that the generation is over, and free who waits for its store.

        Args:
            generation: all before it are over too.
            members: those who were to be in it; one that has not heard of it is parked already.
            peer_died: see `BreakGang`.
        """
        self._outbox.heard()
        self._break_locally(generation, but=None, peer_died=peer_died)
        self._stores.close_up_to(generation)
        for number in members:
            worker = self._workers.get(number)
            if worker is not None and worker.generation < generation:
                worker.generation = generation  # its order to join, if it still comes, is void
                parked = WorkerParked(generation, number, 0, "it had not been told to join yet")
                await self._outbox.put_when_free(to_line(parked))

    async def ask_clerk(self, request: dict[str, Any]) -> dict[str, Any]:
        """Fork a clerk for one request; return its answer.

        Raises:
            ClusterError: it could not be forked, or ended without an answer.
        """
        self._outbox.heard()
        answer = await self._clerks.ask(request)
        if answer is None:
            why = f" ({self._gone_because})" if self._gone_because else ""
            what = f"{request['task']} ended without an answer"
            raise ClusterError(f"{what}{why}; see {self._log_file}")
        return answer

    async def end(self, reason: str) -> None:
        """Kill all workers, wait until they are reaped, and leave."""
        log.info("agent_ends", reason=reason)
        running = list(self._workers.values())
        for worker in running:
            worker.kill()
        try:
            await asyncio.wait_for(asyncio.gather(*(w.ended.wait() for w in running)), timeout=5.0)
        except TimeoutError:
            log.warning("not_reaped", workers=sorted(self._workers))
        self.close()

    def close(self) -> None:
        """Let go of the warm parent at once: the kernel kills what it forked."""
        if self._link is not None:
            self._link.close()
            self._link = None
        for task in self._tasks:
            task.cancel()
        self._vaults.close()
        self.over.set()

    def notice(self, text: str) -> None:
        """Tell people something that changes no decision."""
        log.warning("notice", text=text)
        plain = {"kind": "Notice", "node": self.config.node, "text": text}
        self._outbox.put(json.dumps(plain).encode() + b"\n")

    # -- the warm parent

    def _spawn(self) -> str:
        preload = (self.config.entry.partition(":")[0],)
        name, self._warm_process = spawn_warm_parent(preload, self._log_file)
        return name

    def _connect(self) -> WarmParentLink:
        if self._link is None:
            listener = WarmParentListener(
                self._on_warm, self._on_forked, self._on_exited, self._on_gone
            )
            try:
                self._link = WarmParentLink(self._warm_name, listener)
            except ConnectionRefusedError:  # it ended since, or never got as far
                self._warm_name = self._spawn()
                self._link = WarmParentLink(self._warm_name, listener)
            self._link.prepare({"entry": self.config.entry, "job": self.config.job})
            self._stores.prepare_spare()
        return self._link

    def _fork(self, request: ForkRequest, end: socket.socket) -> None:
        try:
            self._connect().fork(request, end)
        except OSError as error:
            raise ClusterError(f"{request.child} was not forked: {error}") from error

    def _on_warm(self, seconds: float, threads: int) -> None:
        self._was_warm = True
        log.info("warm", seconds=seconds)
        if threads > 1:
            self.notice(f"warm parent runs {threads} threads; forked workers may hang")

    def _on_forked(self, child: str, pid: int) -> None:
        worker = self._worker_named(child)
        if worker is not None:
            worker.forked(pid)
        else:
            self._starter.on_forked(child, pid)

    def _on_exited(self, child: str, evidence: str) -> None:
        worker = self._worker_named(child)
        if worker is not None:
            self._spawn_task(self._bury(worker, evidence))
        else:
            self._stores.on_exited(child, evidence)
            self._starter.on_exited(child)

    def _on_gone(self, reason: str) -> None:
        self._link, self._gone_because = None, reason
        self._stores.forget_all()
        self._starter.forget()
        for worker in list(self._workers.values()):
            self._spawn_task(self._bury(worker, f"the warm parent ended: {reason}"))
        if not self.over.is_set() and self._was_warm:  # not if it cannot even import
            self._was_warm = False
            self._warm_name = self._spawn()
            self._connect()

    # -- workers

    async def _start_worker(self, number: int) -> None:
        log_file = os.path.join(self.config.log_dir, f"worker-{number}.log")
        birth, device = self._starter.take(number), self._free_device()
        reader, writer = await asyncio.open_connection(sock=birth.ours, limit=MAX_LINE_BYTES)
        reading = self._spawn_task(self._listen(number, reader))
        worker = Worker(number, birth.child, log_file, device, writer, reading)
        self._workers[number] = worker
        worker.forked(birth.pid)
        pulse = self._vaults.begin(number)
        try:
            self._starter.begin(birth, number, pulse, log_file, device)
        except ClusterError as error:
            await self._bury(worker, str(error))
            return
        if birth.stood_by:  # it has said that it is ready: nobody needs to hear it again
            worker.ready = True
            await self._outbox.put_when_free(to_line(WorkerReady(number, birth.pid)))

    def _free_device(self) -> str | None:
        taken = {worker.device for worker in self._workers.values()}
        return next((device for device in self.config.devices if device not in taken), None)

    async def _listen(self, number: int, reader: asyncio.StreamReader) -> None:
        """Pass a worker's reports on, in order, until its socket closes: nothing else is seen as
        soon when a worker dies."""
        worker = self._workers[number]
        try:
            while (line := await reader.readline()).endswith(b"\n"):  # not cut off by its death
                report = json.loads(line)
                if report["kind"] == "WorkerReady":
                    if worker.ready:
                        continue
                    worker.ready = True
                elif report["kind"] == "GangFormed":
                    self._starter.prepare_later()
                elif report["kind"] in ("WorkerParked", "WorkerFailed"):
                    self._break_locally(report["generation"], but=number)
                has_state = report["kind"] == "GangFormed" or report.get("copies")
                if has_state and report["generation"] == worker.generation:
                    self._vaults.opened(number)
                await self._outbox.put_when_free(line)
        except ConnectionResetError:
            log.info("died_with_a_command_unread", worker=number)
        self._break_locally(worker.generation, but=number, peer_died=True)

    async def _see_end(self, worker: Worker) -> None:
        """Its training thread has ended: if it was killed, report the death before the kernel has
        taken its memory apart. An accelerator's memory is not free before that is done."""
        self._break_locally(worker.generation, but=worker.number, peer_died=True)
        evidence = "" if worker.device is not None else await worker.until_final()
        if evidence:
            await self._bury(worker, evidence)

    async def _bury(self, worker: Worker, evidence: str) -> None:
        """Report a death: the others are told first, its last words come before it."""
        self._break_locally(worker.generation, but=worker.number, peer_died=True)
        if worker.is_dead:
            return
        worker.is_dead = True
        await worker.until_gone()
        await asyncio.wait({worker.reading}, timeout=DRAIN_TIMEOUT_S)
        if self._workers.pop(worker.number, None) is None:
            return
        copies = self._vaults.copies(worker.number)
        self._vaults.end(worker.number)
        worker.let_go()
        died = WorkerDied(0.0, self.config.node, worker.number, evidence, worker.log, copies)
        await self._outbox.put_when_free(to_line(died))

    async def _watch_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self._watch.pause_s)
            for silence in self._watch.look(time.monotonic(), self._signs()):
                self._break_locally(self._workers[silence.worker].generation, but=None)
                log.warning("silent", worker=silence.worker, evidence=silence.evidence)
                silent = WorkerSilent(0.0, self.config.node, silence.worker, silence.evidence)
                self._spawn_task(self._outbox.put_when_free(to_line(silent)))

    def _signs(self) -> list[Sign]:
        """Those that have not beaten yet are not watched: the controller's patience is for them."""
        signs = []
        for worker in self._workers.values():
            pulse = self._vaults.pulse(worker.number)
            beat_s = pulse.beat_s()
            if worker.ready and beat_s is not None:
                worker.watch_lifeline(pulse, partial(self._see_end, worker))
                signs.append(Sign(worker.number, worker.pid, beat_s, pulse.phase))
        return signs

    def _break_locally(self, generation: int, but: int | None, *, peer_died: bool = False) -> None:
        if generation <= self._broken:
            return
        self._broken = generation
        line = to_line(BreakGang(generation, peer_died))
        for worker in self._workers.values():
            if worker.generation == generation and worker.number != but:
                worker.writer.write(line)

    def _worker_named(self, child: str) -> Worker | None:
        return next((one for one in self._workers.values() if one.child == child), None)

    # -- the agent's own life

    async def _run_outbox(self) -> None:
        try:
            reason = await self._outbox.run()
        except Exception as error:  # who cannot report is of no use, and must not seem to be
            log.exception("outbox_failed")
            reason = f"its reports cannot be delivered: {error}"
        await self.end(reason)

    def _spawn_task(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
