"""The controller's hands, with agents that only write down what they are asked."""

import asyncio
from typing import Any

from elasticmoe.cluster.carry_out import Hands
from elasticmoe.cluster.clock import TermClock
from elasticmoe.errors import ClusterError
from elasticmoe.messages.codec import by_name, from_line
from elasticmoe.messages.commands import Command, ForgetVaults, FormGeneration, InstructGang
from elasticmoe.messages.events import CommandFailed, Event
from elasticmoe.messages.worker import FormGang, FromMemory, Instruct, WorkerCommand


class FakeAgents:
    """Stands for `Agents`."""

    def __init__(self, *nodes: str) -> None:
        self.by_node = dict.fromkeys(nodes)
        self.asked: list[tuple[Any, ...]] = []

    def call(self, node: str, method: str, *arguments: Any) -> Any:
        if node not in self.by_node:
            raise ClusterError(f"node {node} has no agent")
        self.asked.append((node, method, *arguments))
        return self._answer(method)

    async def _answer(self, method: str) -> Any:
        return ("10.0.0.1", 4711) if method == "open_store" else None


def carried_out(agents: FakeAgents, command: Command) -> list[Event]:
    """Carry out a command to its end; what was posted."""
    posted: list[Event] = []

    async def main() -> None:
        async def post(event: Event) -> None:
            posted.append(event)

        hands = Hands(agents, post, None, TermClock())  # type: ignore[arg-type]
        await hands.carry_out(command)
        await asyncio.gather(*hands._tasks)

    asyncio.run(main())
    return posted


def test_a_generation_from_memory_is_formed_by_an_order_per_member() -> None:
    agents = FakeAgents("a", "b")
    members = [{"worker": 4, "node": "a"}, {"worker": 7, "node": "b"}, {"worker": 5, "node": "a"}]
    plan = {"members": members, "homes": [[0, 1]]}
    memory = FromMemory(
        step=12, moves=((3, 0, 2),), progress_from=1, heirs=((5, 2),), adopted=((7, 6), (7, 8))
    )

    posted = carried_out(agents, FormGeneration(9, plan, "b", None, 3, "a fault", memory))

    assert posted == []
    assert agents.asked[0] == ("b", "open_store", 9)
    orders = {}
    for node, method, generation, lines in agents.asked[1:]:
        assert (method, generation) == ("form", 9)
        for worker, line in lines.items():
            orders[node, worker] = from_line(by_name(WorkerCommand), line)
    expected = {
        (member["node"], member["worker"]): FormGang(
            9, position, plan, "10.0.0.1", 4711, None, 3, memory
        )
        for position, member in enumerate(members)
    }
    assert orders == expected


def test_vaults_are_forgotten_where_they_are() -> None:
    agents = FakeAgents("a", "b")

    posted = carried_out(agents, ForgetVaults("b", (3, 4)))

    assert posted == []
    assert agents.asked == [("b", "forget_vaults", (3, 4))]


def test_vaults_of_a_node_without_an_agent_are_reported_as_a_failed_command() -> None:
    (failed,) = carried_out(FakeAgents("a"), ForgetVaults("b", (3,)))

    assert isinstance(failed, CommandFailed)
    assert (failed.command, failed.node) == ("ForgetVaults", "b")


def test_an_order_to_restore_protection_carries_its_plan_to_every_node() -> None:
    agents = FakeAgents("a", "b")
    plan = {"homes": [[0, 1]]}

    posted = carried_out(agents, InstructGang(9, 4, "protect", plan))

    assert posted == []
    assert [(node, method, generation) for node, method, generation, _ in agents.asked] == [
        ("a", "instruct", 9),
        ("b", "instruct", 9),
    ]
    kinds = by_name(WorkerCommand)
    for *_, line in agents.asked:
        assert from_line(kinds, line) == Instruct(9, 4, "protect", plan)
