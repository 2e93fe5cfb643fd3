"""A connection that is dropped while the processes at both its ends live on."""

import numpy as np

from chaos.errors import GoneError
from chaos.nemeses.base import Aim, Blow, draw
from chaos.nemeses.processes import OfWorkers, candidates
from chaos.sockets import drop, used_connections
from chaos.world import World


class DropConnection(OfWorkers):
    """One TCP connection in use between two members ends, as a network that fails has it."""

    def strike(self, world: World, aim: Aim, rng: np.random.Generator) -> Blow:
        """Drop one that leads from a victim to another member."""
        (victim,) = draw(candidates(world, aim), aim, rng)
        found = [
            (peer, fd)
            for peer in world.live.members
            if peer.pid != victim.pid
            for fd in used_connections(victim.pid, peer.pid)
        ]
        if not found or not world.owns(victim.pid):
            raise GoneError(f"worker {victim.number} is not connected to anybody")
        peer, fd = found[int(rng.integers(len(found)))]
        evidence = drop(victim.pid, fd)
        return Blow((f"connection of workers {victim.number} and {peer.number}",), evidence)
