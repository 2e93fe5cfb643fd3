"""The small fixed record that every member adds to a step, and what the sum of them says.

Shapes: L = MoE layers, E = routed experts per layer, W = members, V = waves.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite, sqrt
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elasticmoe.errors import PlanError
from elasticmoe.model.wave import LayerLoad, StageOutput, Wave
from elasticmoe.plan.types import Inventory, Plan
from elasticmoe.spec.job import JobSpec

_HEAD: Final = 5  # squared norm, next-token loss, auxiliary loss, newest command, plan digest
_LAYER: Final = 3  # dropped assignments, entropy, confidence
_EXACT: Final = 2**53
"""Integers below this survive in a float64."""


@dataclass(frozen=True, slots=True)
class LayerMetrics:
    """One MoE layer in one committed step, over the global batch."""

    layer: str
    max_violation: float
    """(largest load - mean) / mean of this step. Source: arXiv:2408.15664, section 4.1."""
    running_violation: float
    """The same over the running load."""
    entropy: float
    """Mean entropy of a token's router scores, as share of the largest possible; 0 to 1."""
    confidence: float
    """Mean of a token's largest normalised router score."""
    dead_experts: int
    """Experts that got no token."""
    drop_rate: float
    """Share of assignments that the capacity limit dropped."""
    load: tuple[int, ...]
    """Tokens of each expert, in percent of even load."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What all members know of a step after its records were gathered."""

    loss: float
    """Next-token cross entropy per token, nats."""
    mtp_losses: tuple[float, ...]
    aux_loss: float
    gradient_norm: float
    clip: float
    """Factor on all gradients."""
    command: int
    """Newest command that everybody holds."""
    counts_LE: NDArray[np.int64]
    """Tokens of the global batch that chose each expert."""
    sums_LX: NDArray[np.float64]
    """Per layer, summed over tokens: dropped assignments, entropy, confidence."""
    samples: tuple[int, int]
    """Number of the first sample that was read, and of the one behind the last; equal where not
    every stage read each of them exactly once."""
    is_spike: bool = False
    """Whether the loss is beyond the bound that the job set."""

    @property
    def changes_weights(self) -> bool:
        """Whether the step may be applied; if not, it commits as a no-op."""
        return isfinite(self.gradient_norm) and isfinite(self.loss) and not self.is_spike


class StepRecord:
    """Packs this member's part of a step and reads everybody's."""

    def __init__(
        self, job: JobSpec, inventory: Inventory, plan: Plan, device: torch.device
    ) -> None:
        self._blocks = [block.index for block in inventory.moe_blocks]
        self._num_experts = job.model.moe.num_experts
        self._depth = job.model.mtp_depth
        self._digest = plan.digest % _EXACT
        self._stages = [list(stage.members) for stage in plan.stages]
        self._clip_norm = job.optimizer.clip_norm
        self._tokens = job.batch.global_samples * job.data.seq_len
        self._num_waves = plan.num_waves
        self._device = device

    def pack(
        self,
        squared_norm: float,
        outputs: Sequence[StageOutput],
        waves: Sequence[Wave],
        newest: int,
    ) -> Tensor:
        """This member's record, float64."""
        mtp = np.zeros(self._depth)
        for output in outputs:
            if output.mtp_loss_sums:
                mtp += np.array(output.mtp_loss_sums)
        head = [
            squared_norm,
            sum(output.lm_loss_sum for output in outputs),
            sum(output.aux_loss for output in outputs),
            newest,
            self._digest,
        ]
        counts_LE = np.zeros((len(self._blocks), self._num_experts))
        sums_LX = np.zeros((len(self._blocks), _LAYER))
        for row, block in enumerate(self._blocks):
            for wave in waves:
                load = wave.loads.get(block)
                if load is not None:
                    _add(counts_LE[row], sums_LX[row], load)
        samples = np.array([wave.samples for wave in waves], dtype=np.float64)
        parts = [np.array(head), mtp, samples, sums_LX, counts_LE]
        return torch.from_numpy(np.concatenate([part.reshape(-1) for part in parts])).to(
            self._device
        )

    def read(self, gathered: Tensor) -> StepResult:
        """Add up all records, [W, ...], the same way on every member.

        Raises:
            PlanError: members follow different plans: nothing they computed belongs together.
        """
        records = gathered.cpu().numpy()
        others = np.flatnonzero(records[:, 4] != self._digest).tolist()
        if others:
            raise PlanError(f"Members {others} follow another plan than this one's.")
        total = records.sum(0)
        norm = sqrt(total[0]) if total[0] >= 0 else float("nan")
        mtp = total[_HEAD : _HEAD + self._depth] / self._tokens
        first = _HEAD + self._depth
        rest = total[first + 2 * self._num_waves :]
        samples_WV2 = records[:, first : first + 2 * self._num_waves].astype(np.int64)
        num_layers = len(self._blocks)
        clip = 1.0
        if self._clip_norm is not None and norm > self._clip_norm:
            clip = self._clip_norm / (norm + 1e-6)
        return StepResult(
            loss=float(total[1]) / self._tokens,
            mtp_losses=tuple(float(value) for value in mtp),
            aux_loss=float(total[2]),
            gradient_norm=norm,
            clip=clip,
            command=int(records[:, 3].min()),
            sums_LX=rest[: num_layers * _LAYER].reshape(num_layers, _LAYER),
            counts_LE=rest[num_layers * _LAYER :].reshape(num_layers, -1).astype(np.int64),
            samples=self._samples(samples_WV2.reshape(len(records), -1, 2)),
        )

    def _samples(self, samples_WV2: NDArray[np.int64]) -> tuple[int, int]:
        """What all stages read, if every one read the same, each sample once."""
        found = {_joined(samples_WV2[members].reshape(-1, 2)) for members in self._stages}
        first = int(samples_WV2.min())
        return found.pop() if len(found) == 1 else (first, first)


def layer_metrics(
    inventory: Inventory, top_k: int, result: StepResult, running_LE: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """Per MoE layer what people watch, as plain data of `LayerMetrics`."""
    found = []
    for row, block in enumerate(inventory.moe_blocks):
        counts, (dropped, entropy, confidence) = result.counts_LE[row], result.sums_LX[row]
        tokens = max(float(counts.sum()) / top_k, 1.0)
        found.append(
            asdict(
                LayerMetrics(
                    layer=block.name.removesuffix(".experts"),
                    max_violation=_violation(counts),
                    running_violation=_violation(running_LE[row]),
                    entropy=float(entropy) / tokens / max(np.log(len(counts)), 1e-9),
                    confidence=float(confidence) / tokens,
                    dead_experts=int((counts == 0).sum()),
                    drop_rate=float(dropped) / max(float(counts.sum()), 1.0),
                    load=_percent_of_even(counts),
                )
            )
        )
    return found


def _violation(load_E: NDArray[Any]) -> float:
    mean = float(load_E.mean())
    return float(load_E.max()) / mean - 1.0 if mean > 0 else 0.0


def _percent_of_even(counts_E: NDArray[np.int64]) -> tuple[int, ...]:
    mean = max(float(counts_E.mean()), 1e-9)
    return tuple(round(100 * count / mean) for count in counts_E.tolist())


def _add(counts_E: NDArray[np.float64], sums_X: NDArray[np.float64], load: LayerLoad) -> None:
    counts_E += load.counts_E.cpu().numpy()
    sums_X += np.array([load.dropped, load.entropy, load.confidence])


def _joined(ranges_R2: NDArray[np.int64]) -> tuple[int, int]:
    """Ranges [first, end) as one; empty if they overlap or leave a gap."""
    ranges_R2 = ranges_R2[ranges_R2[:, 0] < ranges_R2[:, 1]]
    if not len(ranges_R2):
        return 0, 0
    first_R, end_R = ranges_R2[np.argsort(ranges_R2[:, 0])].T
    follow = (first_R[1:] == end_R[:-1]).all()
    return int(first_R[0]), int(end_R[-1] if follow else first_R[0])
