"""How much memory layouts need in the pretend world, where no network is built."""

from collections.abc import Sequence
from typing import Protocol

from elasticmoe.plan.make import make_plan
from elasticmoe.plan.memory import host_bytes, plan_memory
from elasticmoe.plan.types import Inventory, Member, Plan
from elasticmoe.spec.job import JobSpec


class Place(Protocol):
    """A machine that workers fit on."""

    @property
    def name(self) -> str:
        """Of the node."""
        ...

    @property
    def domain(self) -> str:
        """Failure domain."""
        ...

    @property
    def capacity(self) -> int:
        """Workers that fit."""
        ...


def needed_bytes(job: JobSpec, inventory: Inventory, plan: Plan) -> dict[str, int]:
    """What a layout of workers that compute on the CPU needs, by node."""
    use = plan_memory(job, inventory, plan)
    return host_bytes(plan, use, homes_on_host=True, device_is_host=True)


def spread_bytes(job: JobSpec, inventory: Inventory, places: Sequence[Place]) -> dict[str, int]:
    """What the wanted workers need by node, dealt out to places as the brain does it at first;
    those without a worker are left out."""
    free = {place.name: place.capacity for place in sorted(places, key=lambda place: place.name)}
    domain_of = {place.name: place.domain for place in places}
    nodes: list[str] = []
    while len(nodes) < job.workers.replicas and any(free.values()):
        for name in [name for name in free if free[name]][: job.workers.replicas - len(nodes)]:
            nodes.append(name)
            free[name] -= 1
    nodes.sort(key=lambda name: (domain_of[name], name))
    members = tuple(Member(number, name, domain_of[name]) for number, name in enumerate(nodes))
    return needed_bytes(job, inventory, make_plan(job, inventory, members))
