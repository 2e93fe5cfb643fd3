"""The three moves of training state in a step, each one all-to-all over the whole gang.

    reduce    gradients         holders -> primary homes, summed in member order
    forward   reduced gradients primary homes -> the other homes
    publish   new weights       primary homes -> holders that are no home

Who sends which unit to whom comes from `plan.exchange`; here it becomes contiguous copies.
What a member sends to itself never touches the network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elasticmoe.plan.exchange import UnitRoutes, plan_exchange
from elasticmoe.plan.holders import IntArray
from elasticmoe.plan.types import Inventory, Plan, Unit
from elasticmoe.runtime.groups import Group
from elasticmoe.runtime.memory import Homes, Span, Weights, add_spans, copy_spans, merge_spans

Place = Callable[[Unit], int]
"""Where a unit begins in a flat buffer."""


@dataclass(frozen=True)
class _Route:
    """One exchange of this member, as copies."""

    sent: list[int]
    received: list[int]
    pack: tuple[Span, ...]
    """Local memory -> send buffer."""
    unpack: tuple[tuple[Span, ...], ...]
    """Per rank: receive buffer (own rank: local memory) -> local memory."""
    outgoing: Tensor
    incoming: Tensor


class StateExchange:
    """Moves gradients and weights between a member's memory and everybody else's."""

    def __init__(
        self,
        inventory: Inventory,
        plan: Plan,
        member: int,
        weights: Weights,
        homes: Homes,
        world: Group,
    ) -> None:
        self._inventory, self._world = inventory, world
        self._weights, self._homes = weights, homes
        tables = plan_exchange(plan, inventory, member)

        def in_homes(unit: Unit) -> int:
            return homes.state.start[unit.index]

        self._reduce = self._route(
            tables.gradients, weights.offset, in_homes, weights.gradients, homes.state.prepared
        )
        self._forward = self._route(
            tables.forwards, in_homes, in_homes, homes.state.prepared, homes.state.prepared
        )
        self._publish = self._route(
            tables.weights, in_homes, weights.offset, weights.flat, weights.flat
        )

    def reduce(self) -> None:
        """Sum the gradients of the units this member is primary home of into `prepared`."""
        route, homes = self._reduce, self._homes
        copy_spans(self._weights.gradients, route.outgoing, route.pack)
        self._world.all_to_all(route.incoming, route.outgoing, route.received, route.sent)
        for reduced in homes.reduced():
            reduced.zero_()
        for rank, spans in enumerate(route.unpack):
            own = rank == self._world.rank
            add_spans(
                self._weights.gradients if own else route.incoming, homes.state.prepared, spans
            )

    def forward(self) -> None:
        """Send reduced gradients to the other homes, and receive those of mirrored units."""
        route, homes = self._forward, self._homes
        copy_spans(homes.state.prepared, route.outgoing, route.pack)
        self._world.all_to_all(route.incoming, route.outgoing, route.received, route.sent)
        for spans in route.unpack:
            copy_spans(route.incoming, homes.state.prepared, spans)

    def publish(self) -> None:
        """Send the primary homes' weights to the holders that are no home, where the stage computes
        with them."""
        route = self._publish
        copy_spans(self._homes.state.master, route.outgoing, route.pack)
        self._world.all_to_all(route.incoming, route.outgoing, route.received, route.sent)
        for rank, spans in enumerate(route.unpack):
            if rank != self._world.rank:
                copy_spans(route.incoming, self._weights.flat, spans)

    def take_own(self) -> None:
        """Bring the weights that this member is home of itself to where its stage computes."""
        own = self._publish.unpack[self._world.rank]
        copy_spans(self._homes.state.master, self._weights.flat, own)

    def _route(
        self, routes: UnitRoutes, source: Place, target: Place, sends: Tensor, receives: Tensor
    ) -> _Route:
        """Turn unit lists into copies between memory and buffers that hold the ranks in order.

        `sends` and `receives` give the buffers' dtypes.
        """
        own = self._world.rank
        pack, sent = self._spans(
            routes.send, own, lambda unit, at: Span(source(unit), at, unit.numel)
        )
        unpack, received = self._spans(
            routes.receive, own, lambda unit, at: Span(at, target(unit), unit.numel)
        )
        units = self._inventory.units
        unpack[own] = merge_spans(
            Span(source(units[u]), target(units[u]), units[u].numel) for u in routes.receive[own]
        )
        return _Route(
            sent=sent,
            received=received,
            pack=merge_spans(span for spans in pack for span in spans),
            unpack=tuple(unpack),
            outgoing=torch.empty(sum(sent), dtype=sends.dtype, device=sends.device),
            incoming=torch.empty(sum(received), dtype=receives.dtype, device=receives.device),
        )

    def _spans(
        self,
        units_of_rank: Sequence[IntArray],
        own: int,
        span: Callable[[Unit, int], Span],
    ) -> tuple[list[tuple[Span, ...]], list[int]]:
        spans: list[tuple[Span, ...]] = []
        sizes: list[int] = []
        at = 0
        for rank, indices in enumerate(units_of_rank):
            begin = at
            found = []
            for index in indices.tolist() if rank != own else ():
                unit = self._inventory.units[index]
                found.append(span(unit, at))
                at += unit.numel
            spans.append(merge_spans(found))
            sizes.append(at - begin)
        return spans, sizes
