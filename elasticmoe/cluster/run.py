"""What all processes of one run know, and Ray's nodes as this job sees them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

from elasticmoe.errors import ClusterError, ElasticMoEError, SpecError
from elasticmoe.spec.job import JobSpec

NAMESPACE: Final = "elasticmoe"
"""Ray namespace of all actors."""
DOMAIN_LABEL: Final = "elasticmoe.io/domain"
"""Ray node label: nodes with the same value fail together."""
DEFAULT_ENTRY: Final = "elasticmoe.runtime.worker:run_worker"


@dataclass(frozen=True)
class Run:
    """One submission of a job."""

    id: str
    """Random; in the names of all its actors."""
    job_json: str
    """The spec."""
    entry: str = DEFAULT_ENTRY
    """The training process, `module:function`; tests put a fake here."""
    ours: bool = True
    """Whether Ray was started for this job alone, on this machine."""
    patience_s: float = 30.0
    """An agent that hears from no controller for this long ends itself."""

    @cached_property
    def job(self) -> JobSpec:
        """The spec, parsed."""
        return JobSpec.model_validate_json(self.job_json)

    @property
    def directory(self) -> Path:
        """The job's directory."""
        return Path(self.job.storage.dir)

    @property
    def log_dir(self) -> Path:
        """Where every process of the job writes its output."""
        return self.directory / "logs"

    @property
    def controller_name(self) -> str:
        """Ray name of the controller actor."""
        return f"{self.job.name}-{self.id}-controller"

    def agent_name(self, node: str) -> str:
        """Ray name of a node's agent."""
        return f"{self.job.name}-{self.id}-agent-{node}"

    def to_text(self) -> str:
        """JSON; `from_text` is its inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Rebuild from `to_text`'s output."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class RayNode:
    """A node of the Ray cluster."""

    id: str
    name: str
    """For people, logs and files."""
    domain: str
    host: str
    resources: Mapping[str, float]
    """In total."""

    @classmethod
    def from_ray(cls, plain: Mapping[str, Any]) -> Self:
        """Read one entry of `ray.nodes()`."""
        node_id = plain["NodeID"]
        name = f"{plain['NodeManagerHostname']}-{node_id[:6]}"
        domain = plain.get("Labels", {}).get(DOMAIN_LABEL, name)
        return cls(node_id, name, domain, plain["NodeManagerAddress"], plain["Resources"])


@dataclass(frozen=True, slots=True)
class Seat:
    """Room for workers on a node: what one agent is granted."""

    node: RayNode
    name: str
    """Of the agent's node, as the controller knows it; a node's second agent gets another one."""
    capacity: int
    resources: Mapping[str, float]
    """Reserved in Ray; empty where Ray is ours."""


def local_seat(run: Run, node: RayNode) -> Seat:
    """The only seat where Ray is ours: there is nobody to leave room to, but GPUs are not shared.

    Raises:
        ClusterError: the job wants GPUs and this machine has none.
    """
    wanted = run.job.workers.max
    if "GPU" not in worker_resources(run, [node]):
        return Seat(node, node.name, wanted, {})
    gpus = int(node.resources.get("GPU", 0))
    if not gpus:
        raise ClusterError(
            "workers.device is cuda, but Ray finds no GPU on this machine; choose auto or cpu"
        )
    return Seat(node, node.name, min(wanted, gpus), {"GPU": min(wanted, gpus)})


def worker_resources(run: Run, nodes: list[RayNode]) -> dict[str, float]:
    """What one worker takes of its node: a GPU where the job wants one, and its CPU threads."""
    workers = run.job.workers
    any_gpu = any(node.resources.get("GPU", 0) >= 1 for node in nodes)
    if workers.device == "cuda" or (workers.device == "auto" and any_gpu):
        return {"GPU": 1.0, "CPU": float(workers.threads)}
    return {"CPU": float(workers.threads)}


def decide_grants(
    free: Mapping[str, int], granted: Mapping[str, int], wanted: int
) -> dict[str, int]:
    """Choose where to ask for more room: each worker goes to the node with the fewest.

    Args:
        free: workers that each node has room for, beside those granted.
        granted: workers granted so far, per node.
        wanted: workers wanted in total.

    Returns:
        New room per node; together with `granted` at most `wanted`.

    >>> decide_grants({"a": 8, "b": 2}, {"c": 1}, wanted=6)
    {'a': 3, 'b': 2}
    """
    new: dict[str, int] = {}
    for _ in range(wanted - sum(granted.values())):
        open_nodes = [node for node in sorted(free) if new.get(node, 0) < free[node]]
        if not open_nodes:
            break
        least = min(open_nodes, key=lambda node: granted.get(node, 0) + new.get(node, 0))
        new[least] = new.get(least, 0) + 1
    return new


def error_from(plain: dict[str, str]) -> ElasticMoEError:
    """Rebuild an error that crossed a process boundary as `code` and `message`."""
    kinds = {kind.code: kind for kind in _all_errors(ElasticMoEError)}
    kind = kinds.get(plain["code"], ElasticMoEError)
    if kind is SpecError:
        return SpecError(tuple(plain["message"].splitlines()))
    try:
        return kind(plain["message"])
    except TypeError:  # it wants other arguments than a sentence
        return ElasticMoEError(plain["message"])


def _all_errors(base: type[ElasticMoEError]) -> list[type[ElasticMoEError]]:
    return [base, *(kind for child in base.__subclasses__() for kind in _all_errors(child))]
