"""Training state beside the units: bias, load and counters. Equal on every member."""

from dataclasses import dataclass, replace
from math import isfinite, isnan, nan
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from elasticmoe.checkpoint.read import Checkpoint
from elasticmoe.plan.bias import update_bias
from elasticmoe.plan.types import Inventory
from elasticmoe.runtime.memory import MASTER_DTYPE
from elasticmoe.spec.job import JobSpec
from elasticmoe.vault.vault import Vault

RUNNING_DECAY = 0.99
"""Of the running load: about the last 100 steps."""
LOSS_DECAY = 0.9
"""Of the running loss, against which a spike is judged: about the last 10 steps."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a number of committed steps led to; moves only at the apply.

    Shapes: L = MoE layers, E = routed experts per layer.
    """

    step: int
    """Committed steps."""
    updates: int
    """Committed steps that changed weights: all but those the guard skipped."""
    bias_LE: torch.Tensor
    """Selection bias, fp32 (fp64 in fp64)."""
    running_LE: NDArray[np.float64]
    """Running load: exponential average of each step's counts."""
    running_loss: float = nan
    """Exponential average of the losses of steps that changed weights; NaN before the first."""

    @classmethod
    def fresh(cls, job: JobSpec, inventory: Inventory, device: torch.device) -> Self:
        """Before the first step."""
        shape = (len(inventory.moe_blocks), job.model.moe.num_experts)
        dtype = MASTER_DTYPE[job.model.precision]
        return cls(0, 0, torch.zeros(shape, dtype=dtype, device=device), np.zeros(shape))

    @classmethod
    def restored(cls, checkpoint: Checkpoint, device: torch.device) -> Self:
        """As a checkpoint left it."""
        state = checkpoint.manifest.state
        return cls(
            step=int(state["step"]),
            updates=int(state["updates"]),
            bias_LE=checkpoint.read("bias").to(device),
            running_LE=checkpoint.read("running").double().numpy(),
            running_loss=float(state.get("running_loss", nan)),
        )

    def advanced(
        self, job: JobSpec, counts_LE: NDArray[np.int64], loss: float, *, is_finite: bool
    ) -> Self:
        """After one more committed step.

        Args:
            counts_LE: tokens of the global batch that chose each expert.
            loss: of the step.
            is_finite: whether the step changes weights; if not, only its number moves.
        """
        if not is_finite:
            return replace(self, step=self.step + 1)
        bias_LE = update_bias(self.bias_LE.cpu().numpy(), counts_LE, job.balance, self.step)
        running_loss = loss
        if not isnan(self.running_loss):
            running_loss = LOSS_DECAY * self.running_loss + (1 - LOSS_DECAY) * loss
        return replace(
            self,
            step=self.step + 1,
            updates=self.updates + 1,
            bias_LE=torch.from_numpy(bias_LE).to(self.bias_LE),
            running_LE=RUNNING_DECAY * self.running_LE + (1 - RUNNING_DECAY) * counts_LE,
            running_loss=running_loss,
        )

    def is_spike(self, loss: float, most: float | None) -> bool:
        """Whether a loss is more than `most` times the running one."""
        return most is not None and isfinite(self.running_loss) and loss > most * self.running_loss

    def save(self, vault: Vault) -> None:
        """Keep it in the vault, beside that of the step before."""
        bias_LE = self.bias_LE.cpu().double().numpy()
        vault.write_progress(
            self.step, self.updates, bias_LE, self.running_LE, (self.running_loss,)
        )

    @classmethod
    def kept(cls, vault: Vault, step: int, like: torch.Tensor) -> Self | None:
        """What a vault keeps of a step; none if nothing. `like` gives the bias's dtype, device."""
        found = vault.read_progress(step)
        if found is None:
            return None
        updates, bias_LE, running_LE, (running_loss, *_) = found
        return cls(step, updates, torch.from_numpy(bias_LE).to(like), running_LE, running_loss)
