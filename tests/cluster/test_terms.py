"""An agent that a newer controller has attached heeds no older one."""

import asyncio
from typing import Any

import pytest

from elasticmoe.cluster.agent_actor import AgentActor
from elasticmoe.errors import ClusterError

OLD, NEW = 3, 4
COMMANDS: dict[str, tuple[Any, ...]] = {
    "attach": (),
    "start_workers": ((7,),),
    "kill_workers": ((7,),),
    "open_store": (2,),
    "form": (2, {7: b"line"}),
    "forget_vaults": ((7,),),
    "instruct": (2, b"line"),
    "break_generation": (2, (7,), True),
    "ask_clerk": ({"ask": "data"},),
    "end": ("the job is over",),
}
"""Everything that a controller can ask of an agent, and with what; the term comes before it."""


class FakeAgent:
    """Stands for `Agent`; writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any, **named: Any) -> "FakeAgent":
            self.asked.append(name)
            return self

        return ask

    def __await__(self) -> Any:
        yield from ()


def attached(term: int) -> tuple[AgentActor, FakeAgent]:
    """An actor's shell around a fake agent, without Ray."""
    actor, agent = AgentActor.__new__(AgentActor), FakeAgent()
    actor._agent, actor._term = agent, term  # type: ignore[assignment]
    return actor, agent


def test_the_list_of_commands_is_whole() -> None:
    methods = {
        name
        for name, method in vars(AgentActor).items()
        if not name.startswith("_") and asyncio.iscoroutinefunction(method)
    }

    assert methods - {"watch", "whereabouts"} == set(COMMANDS)  # those two change nothing


@pytest.mark.parametrize("command", COMMANDS)
def test_an_older_term_is_refused_and_nothing_is_done(command: str) -> None:
    actor, agent = attached(NEW)

    with pytest.raises(ClusterError, match=f"a controller of term {NEW} has taken over"):
        asyncio.run(getattr(actor, command)(OLD, *COMMANDS[command]))

    assert agent.asked == []


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "attach"])
def test_the_same_term_and_the_next_one_are_heeded_and_the_next_one_shuts_the_door(
    command: str,
) -> None:
    actor, agent = attached(OLD)

    for term in (OLD, NEW):
        asyncio.run(getattr(actor, command)(term, *COMMANDS[command]))

    assert agent.asked == [command, command]
    with pytest.raises(ClusterError):
        asyncio.run(getattr(actor, command)(OLD, *COMMANDS[command]))
    assert agent.asked == [command, command]
