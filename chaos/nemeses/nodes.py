"""Nodes that are lost, and the head of the Ray cluster."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from chaos.errors import GoneError
from chaos.nemeses.base import Aim, Answer, Blow, Nemesis, Surroundings
from chaos.nemeses.processes import OfNodes
from chaos.proc import kill
from chaos.world import World


class OfClusterNodes(OfNodes):
    """Strikes a node of the scenario's cluster, but not its head."""

    def lacks(self, around: Surroundings) -> str:
        """Nodes must be ours to break."""
        return "" if around.has_cluster else "[cluster]"

    def obstacle(self, world: World, aim: Aim) -> str:
        """A node with members must fit the aim, and another one must be left."""
        if len({worker.node for worker in world.live.members}) < 2:
            return "the gang is on one node only"
        return super().obstacle(world, aim) or ("" if self.raylets(world, aim) else "no raylet")

    def raylets(self, world: World, aim: Aim) -> list[tuple[str, int]]:
        """Names in the cluster, and pids."""
        assert world.cluster is not None
        pids = world.cluster.raylets()
        labels = {world.label_of(node) for node in self.nodes(world, aim)}
        return sorted((label, pids[label]) for label in labels if label in pids)

    def one(self, world: World, aim: Aim, rng: np.random.Generator) -> tuple[str, int]:
        """One of them, at random."""
        found = self.raylets(world, aim)
        if not found:
            raise GoneError("no raylet is up on such a node")
        return found[int(rng.integers(len(found)))]


class KillRaylet(OfClusterNodes):
    """SIGKILL to a raylet: its node is lost. After `for_s` a new one takes its place."""

    for_s: float = Field(default=2.0, ge=0)

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Kill the raylet; its node stays away until it is undone."""
        assert world.cluster is not None
        cluster = world.cluster
        label, pid = self.one(world, aim, rng)
        cluster.keep_away(label)
        evidence = kill(pid, f"raylet of {label}")

        def undo() -> str:
            cluster.bring_back(label)
            return f"node {label} may come back"

        return Blow((f"node {label}",), evidence, undo)


class PreemptNode(OfClusterNodes):
    """Ray is told to drain a node, as by a preemption notice; `for_s` later the node is killed, and
    a new one takes its place."""

    for_s: float = Field(default=5.0, ge=1)

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Give notice; the node stays away until it is gone."""
        assert world.cluster is not None
        cluster = world.cluster
        label, pid = self.one(world, aim, rng)
        cluster.keep_away(label)
        evidence = cluster.drain(label, self.for_s)

        def undo() -> str:
            cluster.bring_back(label)
            return kill(pid, f"raylet of {label}")

        return Blow((f"node {label}",), evidence, undo)


class KillRayHead(Nemesis):
    """SIGKILL to the head's GCS; after `for_s` it is started again from what it kept on disk."""

    answer: ClassVar[Answer] = Answer.PROGRESS
    for_s: float = Field(default=3.0, ge=0)

    def lacks(self, around: Surroundings) -> str:
        """A local run ends with its Ray; a head that keeps nothing cannot come back."""
        durable = getattr(getattr(around, "cluster", None), "durable_head", False)
        return "" if durable else "[cluster] with durable_head = true"

    def obstacle(self, world: World, aim: Aim) -> str:
        """It must be there."""
        assert world.cluster is not None
        return "" if world.cluster.gcs_pid() else "no GCS is up"

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Kill it."""
        assert world.cluster is not None
        cluster = world.cluster
        pid = cluster.gcs_pid()
        if pid is None:
            raise GoneError("no GCS is up")
        again = cluster.remember_gcs(pid)
        return Blow(("the Ray head",), kill(pid, "the GCS"), again)
