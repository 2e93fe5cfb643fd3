"""What a stage is told about the wave it computes, and how its MoE layers reach other workers.

Shapes: S = samples of this worker in the wave, N = samples of the whole wave, T = S * seq_len
tokens of this worker, K = experts per token, E = experts, D = hidden size, L = MoE layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

RunSlots = Callable[[Tensor, list[int]], Tensor]
"""(rows [M, D] sorted by slot, rows per slot) -> rows [M, D]."""


class TokenExchange(Protocol):
    """How the workers of a stage share the tokens of a MoE layer."""

    def agree(self, block: int, counts_SE: Tensor) -> Tensor:
        """Exchange how many tokens of each sample chose each expert.

        Returns:
            The counts of the whole wave in sample order, int64 [N, E], equal on every worker.
        """
        ...

    def run(
        self,
        block: int,
        tokens_TD: Tensor,
        chosen_TK: Tensor,
        kept_NE: Tensor,
        slots: RunSlots,
        weights_TK: Tensor | None = None,
    ) -> Tensor:
        """Send each token to its experts and bring their outputs back; differentiable.

        Args:
            block: the experts block.
            tokens_TD: this worker's tokens.
            chosen_TK: expert ids, int64; -1 where the assignment was dropped.
            kept_NE: assignments that remain per sample of the wave and expert, int64.
            slots: computes the experts that this worker holds.
            weights_TK: of each choice in the token's sum; none: nothing is summed.

        Returns:
            The weighted sums, [T, D]; without weights the expert outputs per token and choice,
            [T, K, D]. Dropped assignments count as zeros.
        """
        ...


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """What one MoE layer saw in one wave on one worker; sums, so that workers can be added."""

    counts_E: Tensor
    """Tokens that chose each expert, before drops; int64."""
    dropped: int
    """Assignments dropped by the capacity limit."""
    entropy: float
    """Sum over tokens of the entropy (nats) of the normalised router scores."""
    confidence: float
    """Sum over tokens of the largest normalised router score."""


@dataclass(slots=True)
class Wave:
    """One micro-batch as one worker sees it."""

    index: int
    first_sample: int
    """Of this worker, within the wave's N samples."""
    num_samples: int
    wave_samples: int
    """N, of the whole gang."""
    step_tokens: int
    """Predicted tokens of the whole step: every loss is a sum divided by it."""
    num_waves: int
    exchange: TokenExchange
    bias_LE: Tensor
    """Selection bias per MoE layer, fp32 (fp64 in fp64); in the order of `Inventory.moe_blocks`."""
    earlier_counts_LE: Tensor
    """Counts of the earlier waves of this step, of all workers, filled as waves pass: row
    [wave, L, E] int64; `global_batch` balance reads rows up to this wave."""
    loads: dict[int, LayerLoad] = field(default_factory=dict)
    """By experts block; written by the layers (again, with equal values, on recomputation)."""
    samples: tuple[int, int] = (0, 0)
    """What this worker's token ids were: number of the first sample that was read, and of the one
    behind the last; written by whoever reads them."""


@dataclass(frozen=True, slots=True)
class StageOutput:
    """What a stage's forward pass leaves."""

    hidden_STD: Tensor | None
    """For the next stage; none on the last."""
    loss: Tensor
    """Scalar to differentiate: this worker's share of all losses of this stage, already divided
    by the step's totals, so that shares of all workers, stages and waves add up to the step's
    loss."""
    lm_loss_sum: float = 0.0
    """Sum over tokens of the next-token cross entropy (nats); 0 before the last stage."""
    mtp_loss_sums: tuple[float, ...] = ()
    """The same for each MTP depth."""
    aux_loss: float = 0.0
    """The auxiliary losses' part of `loss`."""


class SerialExchange:
    """The exchange of a stage with one worker: sorts tokens by slot, computes, sorts back."""

    def __init__(self, slot_of_expert: dict[int, Tensor]) -> None:
        """
        Args:
            slot_of_expert: per experts block, [E] int64: the slot of each expert.
        """
        self._slot_of_expert = slot_of_expert

    def agree(self, block: int, counts_SE: Tensor) -> Tensor:
        """The only worker's counts are everyone's."""
        return counts_SE

    def run(
        self,
        block: int,
        tokens_TD: Tensor,
        chosen_TK: Tensor,
        kept_NE: Tensor,
        slots: RunSlots,
        weights_TK: Tensor | None = None,
    ) -> Tensor:
        """See `TokenExchange.run`."""
        chosen = chosen_TK.flatten()
        slot = self._slot_of_expert[block][chosen.clamp(min=0)]
        kept = (chosen >= 0).nonzero().squeeze(1)
        order = kept[torch.argsort(slot[kept], stable=True)]
        num_slots = len(self._slot_of_expert[block])
        per_slot: list[int] = torch.bincount(slot[kept], minlength=num_slots).tolist()
        rows = slots(tokens_TD[order // chosen_TK.shape[1]], per_slot)
        out = rows.new_zeros(chosen.shape[0], rows.shape[1])
        rows_TKD = out.index_copy(0, order, rows).view(*chosen_TK.shape, rows.shape[1])
        if weights_TK is None:
            return rows_TKD
        return torch.bmm(weights_TK.to(rows.dtype)[:, None], rows_TKD).squeeze(1)
