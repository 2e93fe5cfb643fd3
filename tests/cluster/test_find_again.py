"""A controller that follows another one finds the agents that are there, whoever is cut off."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import ray
from jobs_for_tests import tiny_job

from elasticmoe.cluster import agents
from elasticmoe.cluster.agent_actor import Hello
from elasticmoe.cluster.agents import Agents
from elasticmoe.cluster.run import Run


class Handle:
    """Of an agent's actor: answers, or its node is cut off and Ray does not know yet."""

    def __init__(self, name: str, *, answers: bool) -> None:
        self.whereabouts = self.attach = self
        self._name, self._answers, self._asked = name, answers, 0

    async def remote(self, *_: Any) -> Any:
        """Where it is, then how it greets."""
        if not self._answers:
            await asyncio.Event().wait()
        self._asked += 1
        return (self._name, 2) if self._asked == 1 else Hello("1", [], ("localhost", 0))


def ray_node(name: str) -> dict[str, Any]:
    return {
        "NodeID": name,
        "NodeManagerHostname": name,
        "NodeManagerAddress": name,
        "Resources": {},
    }


async def never() -> None:
    await asyncio.Event().wait()


def test_an_agent_that_is_cut_off_does_not_keep_the_others_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Run("1", tiny_job(tmp_path / "run").model_dump_json())
    handles = {run.agent_name(one): Handle(one, answers=one != "b") for one in "abc"}
    monkeypatch.setattr(ray, "get_actor", lambda name, _: handles[name])
    monkeypatch.setattr(ray, "nodes", lambda: [ray_node(name) for name in "abc"])
    monkeypatch.setattr(ray.util, "list_named_actors", lambda **_: [])
    monkeypatch.setattr(Agents, "_watch", lambda *_: never())
    monkeypatch.setattr(agents, "FIND_TIMEOUT_S", 0.3)
    told: list[str] = []

    async def up(name: str, _: list[bytes]) -> None:
        told.append(f"{name} up")

    async def lost(name: str, evidence: str) -> None:
        told.append(f"{name} lost: {evidence}")

    async def find() -> None:
        found = Agents(run, 2, up, lost, on_leaving=lambda *_: never(), shunned=frozenset)
        await found.find_again(["b", "a", "c"])
        assert sorted(found.by_node) == ["a", "c"]

    asyncio.run(find())

    assert sorted(told[:2]) == ["a up", "c up"]
    assert told[2:] == ["b lost: its agent did not answer within 0.3 s"]
