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
from torch.nn import functional as F

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

    num_tokens: int
    """T."""
    choices: int
    """K."""
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

    def bring_back(self, rows_MD: Tensor) -> Tensor:
        """Return arrived rows to the workers they came from; gets this worker's sent ones."""
        returned = rows_MD.new_empty(self.sent.numel(), rows_MD.shape[1])
        if self.group is not None:
            self.exchange(rows_MD.index_select(0, self.arrived_at), returned, back=True)
        return returned

    def join(self, kept_KD: Tensor, sent_ND: Tensor) -> Tensor:
        """Kept rows and, from their workers, what was sent here, as computed rows; [M, D]."""
        if self.group is None:
            return kept_KD
        arrived = sent_ND.new_empty(self.arrived_at.numel(), sent_ND.shape[1])
        self.exchange(sent_ND, arrived, back=False)
        out = kept_KD.new_empty(self.source.numel(), kept_KD.shape[1])
        out.index_copy_(0, self.kept_at, kept_KD)
        return out.index_copy_(0, self.arrived_at, arrived)

    def kept_of(self, rows_MD: Tensor) -> Tensor:
        """The kept ones among computed rows, by slot."""
        return rows_MD if self.group is None else rows_MD.index_select(0, self.kept_at)

    def sum_up(self, rows_MD: Tensor, returned: Tensor, weights_A: Tensor | None) -> Tensor:
        """Sum each token's rows, weighted; [T, D]. A bag sum reads every row once."""
        out = self._bag(rows_MD, self.kept, self.kept_at, weights_A)
        if self.group is not None:
            number = torch.arange(self.sent.numel(), device=returned.device)
            out += self._bag(returned, self.sent, number, weights_A)
        return out

    def _bag(self, rows: Tensor, positions: Tensor, at: Tensor, weights_A: Tensor | None) -> Tensor:
        if not positions.numel():
            return rows.new_zeros(self.num_tokens, rows.shape[1])
        place_A = positions.new_full((self.num_tokens * self.choices,), -1)
        place_A[positions] = at
        is_here_A = place_A >= 0
        per_token = is_here_A.view(self.num_tokens, self.choices).sum(1)
        chosen = is_here_A.nonzero().squeeze(1)
        return F.embedding_bag(
            place_A[chosen],
            rows,
            per_token.cumsum(0) - per_token,
            mode="sum",
            per_sample_weights=None if weights_A is None else weights_A[chosen],
        )


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_TD: Tensor, routing: _Routing) -> Tensor:
        ctx.routing = routing
        return routing.spread(tokens_TD)

    @staticmethod
    def backward(ctx: Any, gradient_MD: Tensor) -> tuple[Tensor, None]:
        routing: _Routing = ctx.routing
        rows = gradient_MD.contiguous()
        return routing.sum_up(rows, routing.bring_back(rows), None), None


class _Collect(torch.autograd.Function):
    """Rows back to their assignments, for a combine step of the user's."""

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, routing: _Routing) -> Tensor:
        ctx.routing = routing
        num_assignments = routing.num_tokens * routing.choices
        out = rows_MD.new_zeros(num_assignments, rows_MD.shape[1])
        out.index_copy_(0, routing.kept, routing.kept_of(rows_MD))
        out.index_copy_(0, routing.sent, routing.bring_back(rows_MD))
        return out.view(routing.num_tokens, routing.choices, rows_MD.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient_TKD: Tensor) -> tuple[Tensor, None]:
        routing: _Routing = ctx.routing
        gradient_AD = gradient_TKD.reshape(-1, gradient_TKD.shape[2])
        kept, sent = (gradient_AD.index_select(0, at) for at in (routing.kept, routing.sent))
        return routing.join(kept, sent), None


class _CollectWeighted(torch.autograd.Function):
    """Rows back to their tokens, summed with the gate's weights; no row is ever copied twice."""

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, weights_TK: Tensor, routing: _Routing) -> Tensor:
        weights_A = weights_TK.flatten().to(rows_MD.dtype)
        returned = routing.bring_back(rows_MD)
        ctx.routing = routing
        ctx.save_for_backward(rows_MD, returned, weights_A)
        ctx.weights_dtype = weights_TK.dtype
        return routing.sum_up(rows_MD, returned, weights_A)

    @staticmethod
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor, Tensor, None]:
        routing: _Routing = ctx.routing
        rows_MD, returned, weights_A = ctx.saved_tensors
        change_A = torch.zeros_like(weights_A)
        shares = []
        for rows, at in ((routing.kept_of(rows_MD), routing.kept), (returned, routing.sent)):
            share = gradient_TD.index_select(0, at // routing.choices)
            change_A[at] = (rows * share).sum(1)
            shares.append(share.mul_(weights_A[at, None]))
        change_TK = change_A.view(routing.num_tokens, routing.choices).to(ctx.weights_dtype)
        return routing.join(*shares), change_TK, None


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
        self,
        block: int,
        tokens_TD: Tensor,
        chosen_TK: Tensor,
        kept_NE: Tensor,
        slots: RunSlots,
        weights_TK: Tensor | None = None,
    ) -> Tensor:
        """See `TokenExchange.run`."""
        if self.stays_local(block):
            routing = self._route_local(block, chosen_TK)
        else:
            routing = self._route(block, chosen_TK, kept_NE)
        rows_MD = slots(_Dispatch.apply(tokens_TD, routing), routing.per_slot)
        if weights_TK is None:
            out: Tensor = _Collect.apply(rows_MD, routing)
        else:
            out = _CollectWeighted.apply(rows_MD, weights_TK, routing)
        return out

    def _route_local(self, block: int, chosen_TK: Tensor) -> _Routing:
        chosen = chosen_TK.flatten()
        kept = _kept(chosen)
        slot = self._slot_of_expert[block].to(chosen.device)[chosen[kept]]
        num_slots = len(self._slot_of_expert[block])
        order = kept[_stable_order(slot)]
        none = order[:0]
        return _Routing(
            num_tokens=chosen_TK.shape[0],
            choices=chosen_TK.shape[1],
            group=None,
            kept=order,
            kept_at=torch.arange(len(order), device=order.device),
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
        order = self._order(block, chosen_TK.flatten(), flow_EWW[:, rank])
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
            num_tokens=chosen_TK.shape[0],
            choices=choices,
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
    ) -> Tensor:
        """Sort this worker's assignments by (worker, expert, token)."""
        kept = _kept(chosen)
        experts = chosen[kept]
        owner, num_experts = self._owner[block], flow_EW.shape[0]
        if owner is not None:
            key = (owner * num_experts + torch.arange(num_experts)).to(chosen.device)
            return kept[_stable_order(key[experts])]
        by_expert = _stable_order(experts)
        workers = np.tile(np.arange(flow_EW.shape[1]), num_experts)
        to = torch.from_numpy(np.repeat(workers, flow_EW.reshape(-1))).to(chosen.device)
        return kept[by_expert[_stable_order(to)]]


def _kept(chosen: Tensor) -> Tensor:
    return (chosen >= 0).nonzero().squeeze(1)


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
