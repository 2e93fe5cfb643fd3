"""What the user asked for: a job, in one frozen tree."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from elasticmoe.spec.base import Spec
from elasticmoe.spec.model import ModelSpec

Rung = Literal["retry", "replace", "failover", "snapshot", "checkpoint"]
"""Ways to recover, cheapest first. Behind them all a job waits for workers."""


class SourceSpec(Spec):
    """One packed corpus: a directory written by `elasticmoe data pack`."""

    path: str = Field(min_length=1)
    weight: float = Field(default=1.0, gt=0)
    """Share of samples, relative to the other sources."""


class DataSpec(Spec):
    """Where samples come from. The samples of step t are a pure function of (seed, t)."""

    sources: tuple[SourceSpec, ...] = Field(min_length=1)
    seq_len: int = Field(ge=1)
    """Tokens per sample that are predicted."""
    seed: int = Field(default=0, ge=0)


class BatchSpec(Spec):
    """The global batch; it never depends on the number of workers."""

    global_samples: int = Field(ge=1)
    num_waves: int = Field(default=1, ge=1)
    """Micro-batches of the whole gang per step."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.global_samples < self.num_waves:
            raise ValueError(
                f"global_samples {self.global_samples} is fewer than num_waves {self.num_waves}; "
                "every wave needs a sample"
            )
        if self.global_samples % self.num_waves:
            raise ValueError(
                f"global_samples {self.global_samples} is not a multiple of "
                f"num_waves {self.num_waves}"
            )
        return self

    @property
    def wave_samples(self) -> int:
        """Samples of one wave."""
        return self.global_samples // self.num_waves


class BalanceSpec(Spec):
    """How expert load is kept even."""

    loss: Literal["none", "micro_batch", "sequence", "global_batch"] = "none"
    """Auxiliary loss, by the samples its load counts are taken over."""
    loss_weight: float = Field(default=1e-4, ge=0)
    z_loss_weight: float = Field(default=0.0, ge=0)
    window_samples: int | None = Field(default=None, ge=1)
    """Consecutive samples that `micro_batch` and capacity count together; none: one wave."""
    bias: Literal["none", "sign", "annealed", "magnitude"] = "sign"
    """Aux-loss-free update of the selection bias after each step."""
    bias_rate: float = Field(default=1e-3, ge=0)
    bias_rate_start: float = Field(default=2e-2, ge=0)
    """`annealed` goes from here to `bias_rate` over `bias_anneal_steps`, geometrically."""
    bias_anneal_steps: int = Field(default=100, ge=1)
    bias_limit: float = Field(default=10.0, gt=0)
    """Bound of |bias|."""
    bias_freeze_step: int | None = Field(default=None, ge=0)
    """From this step on the bias stays as it is."""
    mean_centered: bool = False
    """Subtract the mean of each update, so that the biases of a layer sum to zero."""
    capacity_factor: float | None = Field(default=None, gt=0)
    """Room per expert and window, relative to even load; none: dropless."""


class OptimizerSpec(Spec):
    """AdamW with decoupled weight decay; none on norms, biases and gains."""

    learning_rate: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Global gradient norm above which gradients are scaled down."""

    @model_validator(mode="after")
    def _betas(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} are not in [0, 1)")
        return self


class ScheduleSpec(Spec):
    """Length of the run and the learning rate over it."""

    steps: int = Field(ge=1)
    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """`wsd`: warm-up, stable, then linear decay over the last `decay_steps`."""
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end, relative to the peak."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps} "
                f"exceed steps {self.steps}"
            )
        return self


class ParallelSpec(Spec):
    """What the planner is told; everything else it finds itself."""

    stages: int = Field(default=1, ge=1)
    """Pipeline stages; with fewer workers than that, one stage per worker."""
    expert_replicas: Literal["auto", "all", "one"] = "auto"
    """`all`: every worker of a stage holds every expert of its layers; `one`: one holder each;
    `auto`: whichever the cost model finds to move fewer bytes."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"


class WorkersSpec(Spec):
    """How far a job may shrink and grow, and how patiently."""

    replicas: int = Field(ge=1)
    """Workers wanted; what `scale` changes."""
    min: int = Field(ge=1)
    """With fewer healthy workers the job waits instead of training."""
    max: int = Field(ge=1)
    """Workers beyond this number are left to other jobs."""
    spares: int = Field(default=0, ge=0)
    settle_s: float = Field(default=1.0, ge=0)
    """How long new capacity must stay healthy before the job grows into it. Fresh spot nodes
    often leave again."""
    threads: int = Field(default=1, ge=1)
    """CPU threads per worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.replicas <= self.max:
            raise ValueError(f"replicas {self.replicas} is not in min {self.min} .. max {self.max}")
        return self


class ProtectionSpec(Spec):
    """How much loss of workers and nodes the job's state survives."""

    redundancy: int = Field(default=2, ge=1, le=3)
    """Homes per unit of training state."""
    snapshots: Literal["auto", "off", "copy", "parity"] = "auto"
    """Units in host memory, of every worker's own and of one more failure domain, to go back to
    when a unit has lost all its homes. `copy`: there as they are; `parity`: the XOR of those of
    several workers, which needs less memory; `auto`: `copy` where `redundancy` is 1, else `off`."""
    snapshot_interval_s: float | None = Field(default=None, gt=0)
    """Time between two snapshots; none: from what they cost and how often nodes are lost."""
    node_mtbf_h: float = Field(default=1000.0, gt=0)
    """Hours after which a node is lost, on average; what happens to this job counts too."""
    hash_interval_steps: int = Field(default=50, ge=0)
    """How often the homes of every unit are compared; 0: never."""
    max_loss_ratio: float | None = Field(default=None, gt=1)
    """A step whose loss is more than this times the running loss commits as a no-op, like one
    that is not finite; none: no bound. After ten such steps in a row the job goes back to before
    them, and ends if that does not help."""
    max_restarts: int = Field(default=10, ge=0)
    """Recoveries without a committed step in between before the job is given up."""
    restart_backoff_s: float = Field(default=0.2, ge=0)
    """Wait before the second try, doubled with each further one."""
    quarantine_faults: int = Field(default=3, ge=0)
    """A node is kept away from once so many faults were its own: a worker on it whose memory was
    corrupted, that fell silent, got stuck or died, while those on all other nodes were well. 0:
    never. One is chance, a second one happens; the job never falls below `workers.min` for it."""
    quarantine_window_s: float = Field(default=3600.0, gt=0)
    """Faults longer ago than this do not count."""
    quarantine_s: float = Field(default=600.0, gt=0)
    """How long a node gets no workers the first time; twice as long each further time."""
    skip_rungs: tuple[Rung, ...] = ()
    """Rungs of recovery that are never taken, for drills and benchmarks."""
    pinned: bool = True
    """Sample shares never follow measured speed, so that runs are bitwise repeatable. They do not
    yet follow it anyway: `false` is refused."""

    @field_validator("pinned")
    @classmethod
    def _is_pinned(cls, pinned: bool) -> bool:
        if not pinned:
            raise ValueError("false: sample shares do not follow measured speed yet; leave it out")
        return pinned

    @property
    def takes_snapshots(self) -> bool:
        """Whether there are snapshots at all."""
        return self.snapshots in ("copy", "parity") or (
            self.snapshots == "auto" and self.redundancy == 1
        )


class CheckpointSpec(Spec):
    """When state is written to durable storage, and how much of it is kept."""

    interval_steps: int = Field(default=200, ge=1)
    keep: int = Field(default=3, ge=1)


class StorageSpec(Spec):
    """Where the job lives."""

    dir: str = Field(min_length=1)
    """Journal, logs and summary; one job each. A local path, or one that every node can reach."""
    checkpoints: str | None = None
    """A pyarrow file system URI for checkpoints; none: `dir`/checkpoints."""


class JobSpec(Spec):
    """One training job."""

    version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
    model: ModelSpec
    data: DataSpec
    batch: BatchSpec
    balance: BalanceSpec = BalanceSpec()
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    parallel: ParallelSpec = ParallelSpec()
    workers: WorkersSpec
    protection: ProtectionSpec = ProtectionSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    storage: StorageSpec

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.parallel.stages > self.model.num_layers:
            raise ValueError(
                f"parallel.stages {self.parallel.stages} exceeds model.num_layers "
                f"{self.model.num_layers}; a stage needs a layer"
            )
        window = self.balance.window_samples
        if window is not None and self.batch.wave_samples % window:
            raise ValueError(
                f"balance.window_samples {window} does not divide the "
                f"{self.batch.wave_samples} samples of a wave"
            )
        return self

    @property
    def window_samples(self) -> int:
        """Samples of a balance window."""
        return self.balance.window_samples or self.batch.wave_samples

    @property
    def sample_tokens(self) -> int:
        """Token ids read per sample: inputs, plus one target, plus one per MTP depth."""
        return self.data.seq_len + 1 + self.model.mtp_depth
