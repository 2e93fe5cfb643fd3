"""Tokens to their experts and back, over the workers of a stage.

Dispatch: assignments are sorted by (worker, slot), sent in one all-to-all, and grouped by slot.
Collect: the same way back. Both are their own backward pass with the directions exchanged.

Shapes: T = tokens of this worker, K = choices per token, M = rows (one per assignment),
D = hidden size, E = experts, W = workers of the stage, N = samples of the wave.
"""

from collections.abc import Sequence
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
    """Where the assignments of one layer and wave go."""

    order: Tensor
    """[M] positions in the flattened [T, K] assignments, in the order of sending."""
    choices: int
    """K."""
    dropped: bool
    """Whether some assignments go nowhere."""
    group: Group | None
    """None: all rows stay here, and `order` is by slot."""
    sent: list[int]
    received: list[int]
    pieces: list[tuple[int, int]]
    """Ranges of received rows in the order of (slot, source worker)."""
    per_slot: list[int]

    def exchange(self, rows: Tensor, *, back: bool) -> Tensor:
        """Send rows to the workers of their experts, or back."""
        if self.group is None:
            return rows
        received, sent = (self.sent, self.received) if back else (self.received, self.sent)
        arrived = rows.new_empty(sum(received), rows.shape[1])
        self.group.all_to_all(arrived, rows, received, sent)
        return arrived

    def group_by_slot(self, rows: Tensor) -> Tensor:
        """From the order of arrival to the order of (slot, source worker)."""
        if self.group is None:
            return rows
        return torch.cat([rows[a:b] for a, b in self.pieces]) if self.pieces else rows

    def ungroup(self, rows: Tensor) -> Tensor:
        """Inverse of `group_by_slot`."""
        if self.group is None or not self.pieces:
            return rows.contiguous()
        back = torch.empty_like(rows, memory_format=torch.contiguous_format)
        at = 0
        for start, stop in self.pieces:
            back[start:stop] = rows[at : at + stop - start]
            at += stop - start
        return back

    def scatter(self, rows: Tensor, num_assignments: int) -> Tensor:
        """From the order of sending to [T * K, D]; zeros where dropped."""
        new = rows.new_zeros if self.dropped else rows.new_empty
        return new(num_assignments, rows.shape[1]).index_copy_(0, self.order, rows)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_TD: Tensor, routing: _Routing) -> Tensor:
        ctx.routing, ctx.num_tokens = routing, tokens_TD.shape[0]
        rows = tokens_TD.index_select(0, routing.order // routing.choices)
        return routing.group_by_slot(routing.exchange(rows, back=False))

    @staticmethod
    def backward(ctx: Any, gradient_MD: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        routing: _Routing = ctx.routing
        rows = routing.exchange(routing.ungroup(gradient_MD), back=True)
        assignments = routing.scatter(rows, ctx.num_tokens * routing.choices)
        return assignments.view(ctx.num_tokens, routing.choices, rows.shape[1]).sum(1), None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, routing: _Routing, num_tokens: int) -> Tensor:
        ctx.routing = routing
        rows = routing.exchange(routing.ungroup(rows_MD), back=True)
        assignments = routing.scatter(rows, num_tokens * routing.choices)
        return assignments.view(num_tokens, routing.choices, rows.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient_TKD: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        routing: _Routing = ctx.routing
        rows = gradient_TKD.reshape(-1, gradient_TKD.shape[2]).index_select(0, routing.order)
        return routing.group_by_slot(routing.exchange(rows, back=False)), None, None


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
        out: Tensor = _Collect.apply(
            slots(rows, routing.per_slot), routing, tokens_TD.shape[0]
        )
        return out

    def _route_local(self, block: int, chosen_TK: Tensor) -> _Routing:
        chosen = chosen_TK.flatten()
        kept, dropped = _kept(chosen)
        slot = self._slot_of_expert[block].to(chosen.device)[chosen[kept]]
        num_slots = len(self._slot_of_expert[block])
        per_slot = torch.bincount(slot, minlength=num_slots).tolist()
        order = kept[_stable_order(slot)]
        return _Routing(order, chosen_TK.shape[1], dropped, None, [], [], [], per_slot)

    def _route(self, block: int, chosen_TK: Tensor, kept_NE: Tensor) -> _Routing:
        rank, holders_EW = self._group.rank, self._holders_EW[block]
        kept = kept_NE.cpu().numpy()
        tokens_EW = np.stack([kept[a:b].sum(0) for a, b in self._samples], axis=1)
        flow_EWW = split_tokens(tokens_EW, holders_EW)
        order, dropped = self._order(block, chosen_TK.flatten(), flow_EWW[:, rank])
        mine = np.flatnonzero(holders_EW[:, rank])
        arriving = flow_EWW[mine, :, rank]  # [slots, source workers]
        return _Routing(
            order=order,
            choices=chosen_TK.shape[1],
            dropped=dropped,
            group=self._group,
            sent=flow_EWW[:, rank].sum(0).tolist(),
            received=arriving.sum(0).tolist(),
            pieces=_pieces(arriving),
            per_slot=arriving.sum(1).tolist(),
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


def _pieces(arriving_SW: np.ndarray[Any, np.dtype[np.int64]]) -> list[tuple[int, int]]:
    """Ranges of the received rows, which come ordered by (source, slot), by (slot, source)."""
    by_source: Sequence[int] = arriving_SW.T.reshape(-1)
    stops = np.cumsum(by_source).reshape(arriving_SW.shape[1], arriving_SW.shape[0]).T
    starts = stops - arriving_SW
    return [
        (int(start), int(stop))
        for start, stop in zip(starts.reshape(-1), stops.reshape(-1), strict=True)
        if start < stop
    ]
