"""One node's part of a job."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an agent is told when it is placed."""

    node: str
    domain: str
    host: str
    """Address at which other nodes reach this one."""
    capacity: int
    job: str
    """The job's spec as JSON."""
    log_dir: str
    entry: str = "elasticmoe.runtime.worker:run_worker"
    """The training process; tests put a fake here."""
    warm_parent: str | None = None
    """Name of one that is already warming up for this agent; none: start one."""
    devices: tuple[str, ...] = ()
    """Accelerators granted on this node, one per worker; none on CPU."""
    memory_bytes: int = 0
    """Memory that the job may use here."""
    patience_s: float = 30.0
    """Without a word from a controller for this long, the agent ends itself."""
