"""The thin Ray shell around the controller: clock, journal, agents, HTTP; no opinions."""

import asyncio
import json
import logging
import os
import sys
from dataclasses import replace
from typing import Any, Final, Literal, NoReturn

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from elasticmoe.cluster.agents import Agents
from elasticmoe.cluster.carry_out import END_TIMEOUT_S, Hands
from elasticmoe.cluster.clock import TermClock, rest_before_term
from elasticmoe.cluster.connect import reason_of
from elasticmoe.cluster.directory import lock_directory, write_private
from elasticmoe.cluster.feed import Narrator, Told
from elasticmoe.cluster.head import Head
from elasticmoe.cluster.intake import Intake
from elasticmoe.cluster.journal_file import FileJournal
from elasticmoe.cluster.memory import collect_rarely
from elasticmoe.cluster.raylet import Raylet
from elasticmoe.cluster.run import NAMESPACE, Run
from elasticmoe.cluster.service import Answers, Service
from elasticmoe.controller.avoided import limits, shunned_nodes
from elasticmoe.controller.loop import Controller
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.record import Decided, Record
from elasticmoe.controller.summary import summary
from elasticmoe.errors import ClusterError, ElasticMoEError, StorageError
from elasticmoe.messages.codec import by_name, decode
from elasticmoe.messages.commands import EndJob
from elasticmoe.messages.events import (
    CheckpointAsked,
    Event,
    JobSubmitted,
    NodeLeaving,
    NodeLost,
    Reported,
    StopAsked,
    TermBegan,
)
from elasticmoe.messages.worker import StepDone, WorkerReport
from elasticmoe.telemetry.log import get_log, start_logging
from elasticmoe.version import VERSION

log = get_log(__name__)

FAREWELL_S: Final = 2.0
"""Followers of the event stream have this long to read its end."""
FIRST_NODE_TIMEOUT_S: Final = 600.0
"""A cluster may have to start a machine before there is any room."""
REST_S: Final = 10.0
"""At most, between two controllers that fail: agents that hear nothing end their workers."""
HEAD_RESOURCE: Final = "node:__internal_head__"
"""Ray's head node has it."""
_EVENTS: Final = by_name(Event)
_REPORTS: Final = by_name(WorkerReport)


class ControllerActor:
    """Runs a `Controller` in a Ray process, and tells the world what it does."""

    def __init__(self, run_text: str) -> None:
        """Start to take over at once, also when Ray restarts this process."""
        self._run = Run.from_text(run_text)
        os.makedirs(self._run.log_dir, exist_ok=True)
        start_logging((self._run.log_dir / "controller.log").open("a", buffering=1))
        logging.captureWarnings(True)
        collect_rarely()
        self._raylet = Raylet(ours=self._run.ours)
        self._clock = TermClock()
        self._controller: Controller | None = None
        self._agents: Agents | None = None
        self._first_node = asyncio.Event()
        self._too_early: list[tuple[str, list[bytes]]] = []
        self._intake = Intake(self._take)
        self._over = asyncio.Event()
        self._outcome: dict[str, Any] = {}
        self._is_new = False
        """Whether no controller of this run has ever decided anything."""
        self._head_is_lost = False
        loop = asyncio.get_running_loop()
        self._beginning = loop.create_task(self._take_over_or_leave())
        self._tasks = [loop.create_task(self._raylet.end_with_it(lambda: None))]

    async def begin(self) -> dict[str, Any]:
        """Wait until the job runs; return what `service.json` holds.

        Raises:
            StorageError: the directory belongs to another running job, or cannot be written.
            ElasticMoEError: what `clerk.inspect_job` refuses.
        """
        return await asyncio.shield(self._beginning)

    async def wait(self) -> dict[str, Any]:
        """Wait for the job's end; return its outcome."""
        await self.begin()
        await self._over.wait()
        return self._outcome

    async def ask(self, what: str, by: str) -> None:
        """Take a wish: `stop` or `checkpoint`."""
        now_s = self._now()
        await self._post(StopAsked(now_s, by) if what == "stop" else CheckpointAsked(now_s))

    async def post_reports(
        self, node: str, incarnation: str, lines: list[bytes]
    ) -> bool | Literal["later"] | None:
        """Take what an agent and its workers say.

        Returns:
            Whether the node belongs to the job; none if that is not known; "later" if it is not
            known yet or the lines are not on record yet: they are to be given again until they are.
        """
        belongs = self._agents.heard(node, incarnation) if self._agents is not None else None
        if belongs is None and not self._beginning.done():
            return "later"  # to take over may take as long as a full disk does
        try:
            if belongs and lines and not await self._intake.has_taken(node, lines):
                return "later"
        except StorageError:
            _crash()
        return belongs

    # -- taking over

    async def _take_over_or_leave(self) -> dict[str, Any]:
        try:
            return await self._take_over()
        except Exception:
            log.exception("not_begun")
            if not self._run.ours:  # whoever waits hears of it; nobody else would end this actor
                loop = asyncio.get_running_loop()
                if self._is_new:
                    actor = ray.get_runtime_context().current_actor
                    loop.call_later(FAREWELL_S, lambda: ray.kill(actor, no_restart=True))
                else:
                    loop.call_later(REST_S, os._exit, 1)
            raise

    async def _take_over(self) -> dict[str, Any]:
        run = self._run
        self._lock = lock_directory(run.directory)
        journal = self._journal = await asyncio.to_thread(
            FileJournal, run.directory / "journal", run.id, self._tell
        )
        records = journal.read()
        self._is_new = not records
        rest_s = rest_before_term(records, self._now(), min(REST_S, run.patience_s / 3))
        if rest_s:
            log.warning("crash_loop", rest_s=rest_s)
            await asyncio.sleep(rest_s)
        self._narrator = Narrator(journal.term, run.directory / "steps.jsonl")
        self._agents = Agents(
            run, journal.term, self._node_up, self._node_lost, self._node_leaving, self._shunned
        )
        self._clock = TermClock(max((_at_s(record) for record in records), default=0.0))
        self._hands = Hands(self._agents, self._post, self._finish, self._clock)
        try:
            submitted = None if records else await self._inspect()
        except (ElasticMoEError, RayError) as error:
            await self._agents.end_all(reason_of(error), END_TIMEOUT_S)
            raise
        (run.directory / "outcome.json").unlink(missing_ok=True)  # of an earlier run
        controller = Controller(
            Told(journal, records, self._narrator), self._hands, self._clock.now_s
        )
        if submitted is not None:
            await controller.post(submitted)
        await controller.post(TermBegan(self._now(), journal.term, VERSION))
        self._controller = controller
        for node, lines in self._too_early:
            await self._take(node, lines)
        if records:
            await self._agents.find_again(list(controller.state.nodes))
        loop = asyncio.get_running_loop()
        self._tasks += [
            loop.create_task(self._run_controller(controller)),
            loop.create_task(self._agents.keep_watch()),
            loop.create_task(self._watch_head()),
        ]
        log.info("began", term=journal.term, run=run.id, pid=os.getpid())
        return self._serve()

    def _tell(self, text: str) -> None:
        """Pass on what the journal says, on any thread."""
        log.warning("journal", text=text)
        if self._agents is not None:  # nobody listens before
            self._narrator.notice(self._now(), text)

    async def _inspect(self) -> JobSubmitted:
        """Wait for the first node and have a clerk there look at data, storage and memory."""
        agents = self._agents
        assert agents is not None
        looking = asyncio.ensure_future(agents.keep_watch())
        try:
            await asyncio.wait_for(self._first_node.wait(), FIRST_NODE_TIMEOUT_S)
        except TimeoutError:
            raise ClusterError(
                f"no node had room for a worker within {FIRST_NODE_TIMEOUT_S:g} s; add nodes, or "
                "free CPUs or GPUs"
            ) from None
        finally:
            looking.cancel()
        facts = [json.loads(line) for _, lines in self._too_early for line in lines]
        nodes = [plain for plain in facts if plain["kind"] == "NodeUp"]
        found = await self._hands.ask_clerk({"task": "inspect", "nodes": nodes})
        for skipped in found["skipped"]:
            text = f"checkpoint of step {skipped['step']} is not used: {skipped['reason']}"
            self._narrator.notice(self._now(), text)
        spec = json.loads(self._run.job_json)
        return JobSubmitted(self._now(), spec, found["inventory"], found["checkpoints"])

    def _serve(self) -> dict[str, Any]:
        run, controller, narrator = self._run, self._controller, self._narrator
        assert controller is not None
        loop = asyncio.get_running_loop()
        answers = Answers(
            feed=narrator.feed,
            metrics=lambda: narrator.metrics_text(controller.state),
            status=self._status,
            ask=lambda what: asyncio.run_coroutine_threadsafe(
                self.ask(what, "a user"), loop
            ).result(timeout=10),
        )
        host = "127.0.0.1" if run.ours else ray.util.get_node_ip_address()
        self._service = Service(host, answers)
        facts = {
            "url": self._service.url,
            "token": self._service.token,
            "run": run.id,
            "pids": {"controller": os.getpid()},
        }
        write_private(run.directory / "service.json", json.dumps(facts))
        return facts

    # -- running

    async def _run_controller(self, controller: Controller) -> None:
        try:
            await controller.run()
        except Exception:  # the journal cannot be written, or a bug
            _crash()
        await asyncio.to_thread(self._service.wait_for_followers, FAREWELL_S)
        (self._run.directory / "service.json").unlink(missing_ok=True)
        self._over.set()
        if not self._run.ours:  # nobody else would end this detached actor
            await asyncio.sleep(FAREWELL_S)
            if self._head_is_lost:  # and nobody is there to be told that it must not come back
                os._exit(0)
            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    async def _watch_head(self) -> None:
        """Without its head Ray ends in a while, and the job with it: then rather with a checkpoint
        and a word why."""

        async def lost(why: str) -> None:
            self._head_is_lost = True
            await self._post(StopAsked(self._now(), why))

        head = Head(ray.get_runtime_context().gcs_address)
        await head.watch(lambda text: self._narrator.notice(self._now(), text), lost)

    async def _finish(self, command: EndJob) -> None:
        assert self._controller is not None
        self._outcome = {**summary(self._controller.state), "reason": command.reason}
        text = json.dumps(self._outcome, indent=2)
        (self._run.directory / "outcome.json").write_text(text + "\n")
        self._narrator.feed.add(
            "end",
            self._now(),
            outcome=command.outcome,
            reason=command.reason,
            checkpoint=self._outcome["newest_checkpoint"],
            summary=self._outcome,
        )

    async def _node_up(self, node: str, lines: list[bytes]) -> None:
        if self._controller is None:
            self._too_early.append((node, lines))
            self._first_node.set()
        else:
            await self._take(node, lines)

    async def _node_lost(self, node: str, evidence: str) -> None:
        log.warning("node_lost", node=node, evidence=evidence)
        await self._post(NodeLost(self._now(), node, evidence))

    async def _node_leaving(self, node: str, left_s: float, evidence: str) -> None:
        log.warning("node_leaving", node=node, left_s=left_s, evidence=evidence)
        if self._controller is None:
            return  # nothing is there to be moved
        now_s = self._now()
        await self._post(NodeLeaving(now_s, node, now_s + left_s, evidence))

    def _shunned(self) -> frozenset[str]:
        """Nodes not to count on: the job keeps away from them or, if it waits, has too little
        memory there."""
        if self._controller is None:
            return frozenset()
        state = self._controller.state
        too_small = limits(state) if state.phase is Phase.WAITING else ()
        return shunned_nodes(state).union(too_small)

    async def _take(self, node: str, lines: list[bytes]) -> None:
        """Post an agent's lines in their order, stamped with the time of acceptance.

        They are made durable together: the lock on the journal is taken in the order of asking.
        """
        now_s, events = self._now(), []
        for line in lines:
            plain = json.loads(line)
            if plain["kind"] == "Notice":
                self._narrator.notice(now_s, plain["text"])
                continue
            try:
                events.append(_event(now_s, node, plain))
            except ValueError as error:  # of another version: to repeat it would not help
                log.error("bad_message", node=node, reason=str(error))
        await asyncio.gather(*map(self._post, events))
        for event in events:
            if isinstance(event, Reported) and isinstance(event.report, StepDone):
                self._narrator.step_done(event.at_s, event.report)

    async def _post(self, event: Event) -> None:
        if self._controller is None:
            raise ClusterError("the job has not begun yet")
        await self._controller.post(event)

    def _now(self) -> float:
        return self._clock.now_s()

    def _status(self) -> dict[str, Any]:
        assert self._controller is not None
        state = self._controller.state
        return {
            "name": self._run.job.name,
            "phase": state.phase.value,
            "step": state.committed_step,
            "generation": state.generation,
            "journal_trouble": self._journal.trouble,
            "nodes": [
                {"node": node.name, "domain": node.domain, "capacity": node.capacity}
                for node in state.nodes.values()
            ],
            "workers": [
                {"worker": w.number, "pid": w.pid, "node": w.node, "status": w.status.value}
                for w in state.workers.values()
            ],
            **summary(state),
        }


def _crash() -> NoReturn:
    """Leave it to a fresh process, which replays what is on record."""
    log.exception("controller_crashed")
    sys.stderr.flush()
    os._exit(1)


def _event(now_s: float, node: str, plain: dict[str, Any]) -> Event:
    if plain["kind"] in _REPORTS:
        return Reported(now_s, node, decode(_REPORTS, plain))
    event: Event = decode(_EVENTS, plain)
    if isinstance(event, NodeLeaving):
        return replace(event, at_s=now_s, deadline_s=now_s + event.deadline_s - event.at_s)
    return replace(event, at_s=now_s)


def _at_s(record: Record) -> float:
    body = record.body
    return body.decision.at_s if isinstance(body, Decided) else body.at_s


def start_controller(run: Run) -> Any:
    """Ask Ray for a run's controller; return its handle.

    It needs no resources of its own, and goes to the head where it can: the head is not a spot
    machine, and the controller's address stays the same for longer.
    """
    nodes = [plain for plain in ray.nodes() if plain["Alive"]]
    head = next((plain for plain in nodes if HEAD_RESOURCE in plain["Resources"]), nodes[0])
    return (
        ray.remote(ControllerActor)
        .options(
            name=run.controller_name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,  # a job lasts for weeks; `rest_before_term` slows a crash loop down
            scheduling_strategy=NodeAffinitySchedulingStrategy(head["NodeID"], soft=True),
        )
        .remote(run.to_text())
    )
