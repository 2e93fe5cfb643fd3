"""Tokens to their experts and back, over the workers of a stage.

Dispatch: assignments are sorted by (worker, slot); those of experts elsewhere travel in one
all-to-all, those of experts here do not; one gather then puts all rows in the order of slots.
Collect: the same way back. Each is the other's backward pass.

Shapes: T = tokens of this worker, K = choices per token, M = rows (one per assignment),
D = hidden size, E = experts, W = workers of the stage, N = samples of the wave.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elasticmoe.model.wave import RunSlots
from elasticmoe.plan.dispatch import split_tokens
from elasticmoe.plan.types import Inventory, Plan
from elasticmoe.runtime.groups import Group


@dataclass(frozen=True, slots=True)
class _Routing:
    """Where the assignments of one layer and wave go.

    A row is one assignment: of this worker's tokens it is *kept* (its expert is here) or *sent*;
    the rows that this worker's experts compute are the kept ones and those that *arrive*.
    """

    choices: int
    """K."""
    dropped: bool
    """Whether some assignments go nowhere."""
    group: Group | None
    """None: all rows stay here."""
    kept: Tensor
    """Positions of kept rows in the flattened [T, K] assignments, by slot."""
    kept_at: Tensor
    """Where the kept rows are among the computed ones."""
    sent: Tensor
    """Positions of sent rows in the flattened assignments, by (worker, slot)."""
    arrived_at: Tensor
    """Where the arriving rows are among the computed ones, in the order of arrival."""
    source: Tensor
    """Of each computed row: its token, or T plus its number among the arriving ones."""
    sent_to: list[int]
    """Rows to each worker; none to itself."""
    arriving_from: list[int]
    per_slot: list[int]

    def exchange(self, rows: Tensor, into: Tensor, *, back: bool) -> None:
        """Send rows to the workers of their experts, or back."""
        if self.group is not None:
            received, sent = self.arriving_from, self.sent_to
            if back:
                received, sent = sent, received
            self.group.all_to_all(into, rows, received, sent)

    def spread(self, tokens_TD: Tensor) -> Tensor:
        """Give every computed row a copy of its token; [T, D] to [M, D]."""
        if self.group is None:
            return tokens_TD.index_select(0, self.source)
        num_tokens = tokens_TD.shape[0]
        # One buffer for own and arriving tokens, so that one gather puts all rows in order.
        pool = tokens_TD.new_empty(num_tokens + sum(self.arriving_from), tokens_TD.shape[1])
        pool[:num_tokens] = tokens_TD
        outgoing = tokens_TD.index_select(0, self.sent // self.choices)
        self.exchange(outgoing, pool[num_tokens:], back=False)
        return pool.index_select(0, self.source)

    def gather(self, rows_MD: Tensor, num_tokens: int) -> Tensor:
        """Bring each computed row back to its assignment; [M, D] to [T * K, D], zeros where
        dropped."""
        width = rows_MD.shape[1]
        new = rows_MD.new_zeros if self.dropped else rows_MD.new_empty
        out = new(num_tokens * self.choices, width)
        if self.group is not None:
            returned = rows_MD.new_empty(self.sent.numel(), width)
            self.exchange(rows_MD.index_select(0, self.arrived_at), returned, back=True)
            out.index_copy_(0, self.sent, returned)
            rows_MD = rows_MD.index_select(0, self.kept_at)
        return out.index_copy_(0, self.kept, rows_MD.contiguous())

    def scatter(self, gradient_AD: Tensor) -> Tensor:
        """Inverse of `gather`, for its gradient; [T * K, D] to [M, D]."""
        if self.group is None:
            return gradient_AD.index_select(0, self.kept)
        arrived = gradient_AD.new_empty(sum(self.arriving_from), gradient_AD.shape[1])
        self.exchange(gradient_AD.index_select(0, self.sent), arrived, back=False)
        out = gradient_AD.new_empty(self.source.numel(), gradient_AD.shape[1])
        out.index_copy_(0, self.kept_at, gradient_AD.index_select(0, self.kept))
        return out.index_copy_(0, self.arrived_at, arrived)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_TD: Tensor, routing: _Routing) -> Tensor:
        ctx.routing, ctx.num_tokens = routing, tokens_TD.shape[0]
        return routing.spread(tokens_TD)

    @staticmethod
    def backward(ctx: Any, gradient_MD: Tensor) -> tuple[Tensor, None]:
        routing: _Routing = ctx.routing
        assignments = routing.gather(gradient_MD, ctx.num_tokens)
        shape = (ctx.num_tokens, routing.choices, gradient_MD.shape[1])
        return assignments.view(shape).sum(1), None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, routing: _Routing, num_tokens: int) -> Tensor:
        ctx.routing = routing
        out = routing.gather(rows_MD, num_tokens)
        return out.view(num_tokens, routing.choices, rows_MD.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient_TKD: Tensor) -> tuple[Tensor, None, None]:
        routing: _Routing = ctx.routing
        return routing.scatter(gradient_TKD.reshape(-1, gradient_TKD.shape[2])), None, None


class StageExchange:
    """The token exchange between the workers of a stage (`model.wave.TokenExchange`)."""

    def __init__(
        self, inventory: Inventory, plan: Plan, stage: int, group: Group, *, need_counts: bool
    ) -> None:
        """
        Args:
            inventory: the model.
            plan: who holds which expert.
            stage: this member's stage.
            group: its stage group.
            need_counts: whether every layer needs the whole wave's counts (balance losses and
                capacity do); otherwise they are exchanged only where tokens travel.
        """
        self._group, self._need_counts = group, need_counts
        self._samples = plan.stages[stage].samples
        self._wave_samples = plan.wave_samples
        self._holders_EW: dict[int, np.ndarray[Any, np.dtype[np.bool_]]] = {}
        self._slot_of_expert: dict[int, Tensor] = {}
        self._owner: dict[int, Tensor | None] = {}
        for block, slots in plan.slots.items():
            if block not in plan.stages[stage].blocks:
                continue
            num_experts = inventory.blocks[block].num_experts
            holders_EW = np.zeros((num_experts, group.size), dtype=np.bool_)
            for worker, experts in enumerate(slots):
                holders_EW[list(experts), worker] = True
            self._holders_EW[block] = holders_EW
            slot = torch.full((num_experts,), -1, dtype=torch.int64)
            mine = torch.tensor(slots[group.rank], dtype=torch.int64)
            slot[mine] = torch.arange(len(mine))
            self._slot_of_expert[block] = slot
            single = bool((holders_EW.sum(1) == 1).all())
            self._owner[block] = torch.from_numpy(holders_EW.argmax(1)) if single else None

    def stays_local(self, block: int) -> bool:
        """Whether every worker holds every expert of the layer, so that no token travels."""
        return bool(self._holders_EW[block].all())

    def agree(self, block: int, counts_SE: Tensor) -> Tensor:
        """See `TokenExchange.agree`. Rows of other workers are zero where nobody needs them."""
        if self._group.size == 1:
            return counts_SE
        first, stop = self._samples[self._group.rank]
        whole_NE = counts_SE.new_zeros(self._wave_samples, counts_SE.shape[1])
        if self.stays_local(block) and not self._need_counts:
            whole_NE[first:stop] = counts_SE
            return whole_NE
        most = max(stop - first for first, stop in self._samples)
        padded = counts_SE.new_zeros(most, counts_SE.shape[1])
        padded[: stop - first] = counts_SE
        for worker, counts in enumerate(self._group.gather(padded)):
            first, stop = self._samples[worker]
            whole_NE[first:stop] = counts[: stop - first]
        return whole_NE

    def run(
        self, block: int, tokens_TD: Tensor, chosen_TK: Tensor, kept_NE: Tensor, slots: RunSlots
    ) -> Tensor:
        """See `TokenExchange.run`."""
        if self.stays_local(block):
            routing = self._route_local(block, chosen_TK)
        else:
            routing = self._route(block, chosen_TK, kept_NE)
        rows = _Dispatch.apply(tokens_TD, routing)
        out: Tensor = _Collect.apply(slots(rows, routing.per_slot), routing, tokens_TD.shape[0])
        return out

    def _route_local(self, block: int, chosen_TK: Tensor) -> _Routing:
        chosen = chosen_TK.flatten()
        kept, dropped = _kept(chosen)
        slot = self._slot_of_expert[block].to(chosen.device)[chosen[kept]]
        num_slots = len(self._slot_of_expert[block])
        order = kept[_stable_order(slot)]
        none = order[:0]
        return _Routing(
            choices=chosen_TK.shape[1],
            dropped=dropped,
            group=None,
            kept=order,
            kept_at=none,
            sent=none,
            arrived_at=none,
            source=order // chosen_TK.shape[1],
            sent_to=[],
            arriving_from=[],
            per_slot=torch.bincount(slot, minlength=num_slots).tolist(),
        )

    def _route(self, block: int, chosen_TK: Tensor, kept_NE: Tensor) -> _Routing:
        rank, holders_EW = self._group.rank, self._holders_EW[block]
        choices, device = chosen_TK.shape[1], chosen_TK.device
        counts = kept_NE.cpu().numpy()
        tokens_EW = np.stack([counts[a:b].sum(0) for a, b in self._samples], axis=1)
        flow_EWW = split_tokens(tokens_EW, holders_EW)
        order, dropped = self._order(block, chosen_TK.flatten(), flow_EWW[:, rank])
        leaving = flow_EWW[:, rank].sum(0)
        first = int(leaving[:rank].sum())
        stop = first + int(leaving[rank])
        kept, sent = order[first:stop], torch.cat([order[:first], order[stop:]])
        slots = np.flatnonzero(holders_EW[:, rank])
        computed_SW = flow_EWW[slots, :, rank]
        kept_at, arrived_at = _places(computed_SW, rank)
        arriving = computed_SW.sum(0)
        leaving[rank] = arriving[rank] = 0
        source = torch.empty(len(kept_at) + len(arrived_at), dtype=torch.int64, device=device)
        at_kept, at_arrived = (torch.from_numpy(at).to(device) for at in (kept_at, arrived_at))
        source[at_kept] = kept // choices
        behind = chosen_TK.shape[0]
        source[at_arrived] = torch.arange(behind, behind + len(arrived_at), device=device)
        return _Routing(
            choices=choices,
            dropped=dropped,
            group=self._group,
            kept=kept,
            kept_at=at_kept,
            sent=sent,
            arrived_at=at_arrived,
            source=source,
            sent_to=leaving.tolist(),
            arriving_from=arriving.tolist(),
            per_slot=computed_SW.sum(1).tolist(),
        )

    def _order(
        self, block: int, chosen: Tensor, flow_EW: np.ndarray[Any, np.dtype[np.int64]]
    ) -> tuple[Tensor, bool]:
        """Sort this worker's assignments by (worker, expert, token)."""
        kept, dropped = _kept(chosen)
        experts = chosen[kept]
        owner, num_experts = self._owner[block], flow_EW.shape[0]
        if owner is not None:
            key = (owner * num_experts + torch.arange(num_experts)).to(chosen.device)
            return kept[_stable_order(key[experts])], dropped
        by_expert = _stable_order(experts)
        workers = np.tile(np.arange(flow_EW.shape[1]), num_experts)
        to = torch.from_numpy(np.repeat(workers, flow_EW.reshape(-1))).to(chosen.device)
        return kept[by_expert[_stable_order(to)]], dropped


def _kept(chosen: Tensor) -> tuple[Tensor, bool]:
    kept = (chosen >= 0).nonzero().squeeze(1)
    return kept, kept.numel() < chosen.numel()


def _stable_order(keys: Tensor) -> Tensor:
    return torch.argsort(keys, stable=True)


def _places(
    computed_SW: np.ndarray[Any, np.dtype[np.int64]], rank: int
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Where kept rows (by slot) and arriving rows (by source worker, then slot) lie among the
    computed ones, which are ordered by (slot, source worker)."""
    stops = np.cumsum(computed_SW.reshape(-1)).reshape(computed_SW.shape)
    places_W = [
        np.concatenate(
            [np.arange(stop - rows, stop) for stop, rows in zip(stops[:, w], rows_S, strict=True)]
            or [np.empty(0, np.int64)]
        )
        for w, rows_S in enumerate(computed_SW.T)
    ]
    kept = places_W.pop(rank)
    return kept, np.concatenate(places_W or [np.empty(0, np.int64)])
