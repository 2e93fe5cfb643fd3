"""The controller's hands: commands become calls to agents, timers and clerks' work."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any, Final

from ray.exceptions import RayError

from elasticmoe.cluster.agents import Agents
from elasticmoe.cluster.clock import TermClock
from elasticmoe.cluster.connect import reason_of
from elasticmoe.cluster.run import error_from
from elasticmoe.errors import ClusterError, ElasticMoEError
from elasticmoe.messages.codec import encode, to_line
from elasticmoe.messages.commands import (
    BreakGeneration,
    Command,
    DeleteCheckpoint,
    EndJob,
    ForgetVaults,
    FormGeneration,
    InstructGang,
    KillWorkers,
    SealCheckpoint,
    StartWorkers,
    WakeAt,
)
from elasticmoe.messages.events import (
    CheckpointLost,
    CheckpointSealed,
    CommandFailed,
    Event,
    TimePassed,
)
from elasticmoe.messages.worker import FormGang, Instruct
from elasticmoe.telemetry.log import get_log

log = get_log(__name__)

END_TIMEOUT_S: Final = 6.0
"""Agents kill their workers at the job's end; those that do not answer by then are killed."""
FORM_TIMEOUT_S: Final = 5.0
"""A break of a generation waits for its forming to be on its way, but no longer."""


@dataclass(frozen=True, slots=True)
class Forming:
    """A generation that this controller has formed."""

    members: dict[str, dict[int, int]]
    """Node -> worker -> position in the gang."""
    sending: asyncio.Task[None]


class Hands:
    """Carries out commands in the background; what becomes of them is posted as events."""

    def __init__(
        self,
        agents: Agents,
        post: Callable[[Event], Awaitable[None]],
        end: Callable[[EndJob], Awaitable[None]],
        clock: TermClock,
    ) -> None:
        self._agents, self._post, self._end = agents, post, end
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._deleting: set[asyncio.Task[None]] = set()
        self._forming: dict[int, Forming] = {}

    async def carry_out(self, command: Command) -> None:
        """Begin what a command says; see `controller.protocols.Effects`."""
        match command:
            case StartWorkers():
                call = self._call(command.node, "start_workers", command.workers)
                self._begin(command, call, node=command.node, workers=command.workers)
            case KillWorkers():
                call = self._call(command.node, "kill_workers", command.workers)
                self._begin(command, call, node=command.node)
            case FormGeneration():
                self._begin_forming(command)
            case ForgetVaults():
                call = self._call(command.node, "forget_vaults", command.workers)
                self._begin(command, call, node=command.node)
            case BreakGeneration():
                self._begin(command, self._break(command), generation=command.generation)
            case InstructGang():
                self._begin(command, self._instruct(command), generation=command.generation)
            case SealCheckpoint():
                self._begin(command, self._seal(command))
            case DeleteCheckpoint():
                task = self._begin(command, self._delete(command))
                self._deleting.add(task)
                task.add_done_callback(self._deleting.discard)
            case WakeAt():
                self._begin(command, self._wake(command.at_s))
            case EndJob():
                if self._deleting:  # an agent's clerk does it; afterwards there is none
                    await asyncio.wait(self._deleting, timeout=END_TIMEOUT_S)
                await self._agents.end_all(command.reason, END_TIMEOUT_S)
                await self._end(command)

    async def ask_clerk(self, request: dict[str, Any]) -> Any:
        """Have a clerk do something on whichever node answers.

        Raises:
            ElasticMoEError: with the code of the error that the clerk met.
        """
        node = next(iter(self._agents.by_node), "")
        answer = await self._agents.call(node, "ask_clerk", request)
        if "error" in answer:
            raise error_from(answer["error"])
        return answer["result"]

    # -- each of these runs in the background

    def _call(self, node: str, method: str, *arguments: Any) -> Coroutine[Any, Any, None]:
        """Call an agent now, wait for its answer later: calls keep their order."""
        try:
            answer = self._agents.call(node, method, *arguments)
        except ClusterError as error:
            return _fail(error)
        return _wait(answer)

    def _begin_forming(self, command: FormGeneration) -> None:
        members: dict[str, dict[int, int]] = {}
        for position, member in enumerate(command.plan["members"]):
            members.setdefault(member["node"], {})[member["worker"]] = position
        sending = self._begin(command, self._form(command, members), generation=command.generation)
        self._forming[command.generation] = Forming(members, sending)
        for old in sorted(self._forming)[:-2]:
            del self._forming[old]

    async def _form(self, command: FormGeneration, members: dict[str, dict[int, int]]) -> None:
        generation = command.generation
        host, port = await self._agents.call(command.store_node, "open_store", generation)
        order = encode(
            FormGang(
                generation=generation,
                member=-1,
                plan={},
                store_host=host,
                store_port=port,
                checkpoint=command.checkpoint,
                first_command=command.first_command,
                memory=command.memory,
            )
        )
        order["plan"] = command.plan  # plain data already: not walked through once per member
        calls = []
        for node, positions in members.items():
            lines = {
                worker: json.dumps({**order, "member": position}).encode() + b"\n"
                for worker, position in positions.items()
            }
            calls.append(self._call(node, "form", generation, lines))
        await asyncio.gather(*calls)

    async def _break(self, command: BreakGeneration) -> None:
        generation = command.generation
        forming = self._forming.get(generation)
        if forming is not None:
            await asyncio.wait({forming.sending}, timeout=FORM_TIMEOUT_S)
        calls = []
        for node in list(self._agents.by_node):
            members = tuple(forming.members.get(node, {})) if forming else ()
            arguments = (generation, members, command.peer_died)
            calls.append(self._call(node, "break_generation", *arguments))
        await asyncio.gather(*calls)

    async def _instruct(self, command: InstructGang) -> None:
        order = Instruct(command.generation, command.number, command.action, command.plan)
        line = to_line(order)
        forming = self._forming.get(command.generation)  # none: formed by an earlier controller
        nodes = [node for node in self._agents.by_node if not forming or node in forming.members]
        calls = [self._call(node, "instruct", command.generation, line) for node in nodes]
        await asyncio.gather(*calls)

    async def _seal(self, command: SealCheckpoint) -> None:
        request = {"task": "seal", **asdict(command)}
        try:
            sealed = await self.ask_clerk(request)
        except (ElasticMoEError, RayError) as error:
            lost = CheckpointLost(
                self._clock.now_s(), command.step, reason_of(error), command.generation
            )
            await self._post(lost)
            return
        await self._post(
            CheckpointSealed(
                self._clock.now_s(),
                command.step,
                sealed["uri"],
                sealed["bytes"],
                command.generation,
            )
        )

    async def _delete(self, command: DeleteCheckpoint) -> None:
        await self.ask_clerk({"task": "remove", "step": command.step})

    async def _wake(self, at_s: float) -> None:
        await asyncio.sleep(max(at_s - self._clock.now_s(), 0.0))
        await self._post(TimePassed(max(self._clock.now_s(), at_s)))

    def _begin(
        self, command: Command, work: Coroutine[Any, Any, None], **about: Any
    ) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work
            except (ElasticMoEError, RayError) as error:
                name = type(command).__name__
                reason = reason_of(error)
                log.warning("command_failed", command=name, reason=reason)
                await self._post(CommandFailed(self._clock.now_s(), name, reason, **about))

        task = asyncio.ensure_future(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _wait(answer: Any) -> None:
    await answer


async def _fail(error: ClusterError) -> None:
    raise error
