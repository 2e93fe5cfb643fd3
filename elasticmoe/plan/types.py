"""The words of a plan: blocks and units of training state, and who computes and keeps them.

An *inventory* says what the model is made of; it depends on the model alone. A *plan* says who
does what in one generation; it depends on the inventory, the job and the members.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Final, Literal, Self

ALIGN: Final = 16
"""Parameters and units start at multiples of this many elements (64 bytes in fp32)."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of a block, and where it lies in the block's flat memory."""

    name: str
    shape: tuple[int, ...]
    decay: bool
    offset: int
    """First element in the block's flat memory (of one expert, for an experts block)."""

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Block:
    """Parameters that are always held together: a layer's dense part, or a layer's experts.

    Names: `embedding`, `layer.3`, `layer.3.experts`, `head`, `mtp.0`, `mtp.0.experts`.
    """

    index: int
    name: str
    layer: int
    """Layer of the main network; -1 for embedding, head and MTP."""
    parameters: tuple[Parameter, ...]
    """Decayed ones first. Of one expert, for an experts block."""
    decay_numel: int
    """Elements before this offset are decayed, those behind are not."""
    numel: int
    """Elements of the block's flat memory, padding included (of one expert)."""
    num_experts: int
    """0 for a dense block."""
    flops_per_token: float
    """Forward matrix-product flops per token at the job's sequence length (per routed token and
    expert, for an experts block)."""
    activation_bytes_per_token: float
    """Kept for the backward pass (per routed token, for an experts block)."""

    @property
    def is_experts(self) -> bool:
        """Whether the block holds routed experts."""
        return self.num_experts > 0


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece of training state that moves."""

    index: int
    block: int
    expert: int
    """The logical expert; -1 for a piece of a dense block."""
    offset: int
    """First element in the block's flat memory (0 for an expert)."""
    numel: int
    """A multiple of ALIGN."""
    decay_numel: int
    """Leading elements that are decayed; the rest are not."""


@dataclass(frozen=True)
class Inventory:
    """What a model's training state consists of, independent of any layout."""

    blocks: tuple[Block, ...]
    """In the order of the network."""
    units: tuple[Unit, ...]
    """In the order of the blocks; within a block by offset or expert."""

    @cached_property
    def block_by_name(self) -> Mapping[str, Block]:
        """Blocks by their name."""
        return {block.name: block for block in self.blocks}

    @cached_property
    def units_of_block(self) -> tuple[tuple[Unit, ...], ...]:
        """Units of each block, by block index."""
        found: list[list[Unit]] = [[] for _ in self.blocks]
        for unit in self.units:
            found[unit.block].append(unit)
        return tuple(tuple(units) for units in found)

    @cached_property
    def moe_blocks(self) -> tuple[Block, ...]:
        """Experts blocks in network order; their position is the row of load and bias arrays."""
        return tuple(block for block in self.blocks if block.is_experts)

    @cached_property
    def num_parameters(self) -> int:
        """Parameters of the model, without padding."""
        return sum(
            parameter.numel * max(block.num_experts, 1)
            for block in self.blocks
            for parameter in block.parameters
        )


@dataclass(frozen=True, slots=True)
class Member:
    """A worker in the gang; its position in `Plan.members` is its rank in the world group."""

    worker: int
    """Number of the worker within the job; never used twice."""
    node: str
    domain: str
    """Failure domain; the node's own name where nothing else is known."""


@dataclass(frozen=True, slots=True)
class Op:
    """One entry of a stage's timetable: forward or backward of a wave."""

    kind: Literal["forward", "backward"]
    wave: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A contiguous run of layers and the members that hold them."""

    first_layer: int
    end_layer: int
    """Layers [first_layer, end_layer)."""
    members: tuple[int, ...]
    """Positions in `Plan.members`, ascending; the order is the rank in the stage group."""
    blocks: tuple[int, ...]
    """Dense and experts blocks that this stage computes, in network order."""
    samples: tuple[tuple[int, int], ...]
    """Per stage member: its [start, end) of every wave's samples, contiguous and ascending."""
    timetable: tuple[Op, ...]


@dataclass(frozen=True)
class Plan:
    """Who computes what and who keeps what in one generation."""

    members: tuple[Member, ...]
    stages: tuple[Stage, ...]
    slots: Mapping[int, tuple[tuple[int, ...], ...]]
    """Experts block -> per stage member (in the order of `Stage.members`) the experts in its
    slots, ascending; no expert twice on one member."""
    homes: tuple[tuple[int, ...], ...]
    """Per unit its homes as positions in `members`, primary first; the primary is a holder."""
    num_waves: int
    wave_samples: int

    @cached_property
    def stage_of_member(self) -> tuple[int, ...]:
        """Stage of each member."""
        found = {m: s for s, stage in enumerate(self.stages) for m in stage.members}
        return tuple(found[m] for m in range(len(self.members)))

    @cached_property
    def stages_of_block(self) -> Mapping[int, tuple[int, ...]]:
        """Stages that use each block; embedding and head may have two."""
        found: dict[int, list[int]] = {}
        for s, stage in enumerate(self.stages):
            for block in stage.blocks:
                found.setdefault(block, []).append(s)
        return {block: tuple(stages) for block, stages in found.items()}

    def holders(self, unit: Unit) -> tuple[int, ...]:
        """Members with the unit's compute weights, ascending."""
        stages = self.stages_of_block[unit.block]
        if unit.expert < 0:
            return tuple(sorted(m for s in stages for m in self.stages[s].members))
        (stage,) = stages
        return tuple(
            member
            for member, experts in zip(
                self.stages[stage].members, self.slots[unit.block], strict=True
            )
            if unit.expert in experts
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data as it comes back from JSON text; `from_json` is its inverse."""
        return {
            "members": [
                {"worker": member.worker, "node": member.node, "domain": member.domain}
                for member in self.members
            ],
            "stages": [
                {
                    "first_layer": stage.first_layer,
                    "end_layer": stage.end_layer,
                    "members": list(stage.members),
                    "blocks": list(stage.blocks),
                    "samples": [list(samples) for samples in stage.samples],
                    "timetable": [{"kind": op.kind, "wave": op.wave} for op in stage.timetable],
                }
                for stage in self.stages
            ],
            "slots": {
                str(block): [list(experts) for experts in slots]
                for block, slots in self.slots.items()
            },
            "homes": [list(homes) for homes in self.homes],
            "num_waves": self.num_waves,
            "wave_samples": self.wave_samples,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Rebuild a plan from `to_json`'s output, also after a trip through JSON text."""
        return cls(
            members=tuple(Member(**member) for member in plain["members"]),
            stages=tuple(
                Stage(
                    first_layer=stage["first_layer"],
                    end_layer=stage["end_layer"],
                    members=tuple(stage["members"]),
                    blocks=tuple(stage["blocks"]),
                    samples=tuple((start, end) for start, end in stage["samples"]),
                    timetable=tuple(Op(**op) for op in stage["timetable"]),
                )
                for stage in plain["stages"]
            ),
            slots={
                int(block): tuple(tuple(experts) for experts in slots)
                for block, slots in plain["slots"].items()
            },
            homes=tuple(tuple(homes) for homes in plain["homes"]),
            num_waves=plain["num_waves"],
            wave_samples=plain["wave_samples"],
        )

    @cached_property
    def digest(self) -> int:
        """The plan's hash as a non-negative 63-bit integer; equal plans have equal digests."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
