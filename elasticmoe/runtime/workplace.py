"""What a worker keeps from one generation to the next."""

import os

import torch
from torch import nn

from elasticmoe.model.stage import StageModel, build_dense
from elasticmoe.plan.types import Inventory, Plan
from elasticmoe.runtime.memory import COMPUTE_DTYPE, MASTER_DTYPE, State, Weights
from elasticmoe.spec.job import JobSpec
from elasticmoe.vault.layout import VaultLayout
from elasticmoe.vault.pulse import Pulse
from elasticmoe.vault.vault import Vault, create_vault

_prepared: dict[str, nn.Module] = {}
"""Dense modules that were built in the process this one was forked from."""


def prepare_modules(job: JobSpec, inventory: Inventory) -> None:
    """Build the network's modules before a process is forked that will need them at once."""
    _prepared.update(build_dense(job, inventory))


class Workplace:
    """What a worker keeps from one generation to the next: its vault, and the network while the
    next plan gives it the same part."""

    def __init__(
        self,
        job: JobSpec,
        inventory: Inventory,
        device: torch.device,
        vault: Vault | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        """
        Args:
            vault: this worker's own; none: make one that ends with this process.
            pulse: where it shows what it does.
        """
        self.job, self.inventory, self.device, self.pulse = job, inventory, device, pulse
        self.state = State(
            inventory, vault or private_vault(job, inventory), job.model.precision, device
        )
        self.processor_flops: float | None = None
        """What one processor could do at most, FLOP/s; none until measured."""
        self._built = dict(_prepared)
        _prepared.clear()  # a second workplace of this process builds its own
        self._part: object = None
        self._network: tuple[Weights, StageModel] | None = None

    def build(self, plan: Plan, member: int) -> tuple[Weights, StageModel]:
        """Weights and layers of the part that a member computes; as they are if it is the same."""
        index = plan.stage_of_member[member]
        stage, slots = plan.stages[index], slots_of(plan, self.inventory, member)
        part = (stage.blocks, slots, index == 0, index == len(plan.stages) - 1)
        if self._network is None or part != self._part:
            precision = self.job.model.precision
            weights = Weights(self.inventory, stage.blocks, slots, precision, self.device)
            layers = build_stage(self.job, self.inventory, plan, member, self.device, self._built)
            weights.bind(layers)
            self._part, self._network = part, (weights, layers)
        return self._network


def private_vault(job: JobSpec, inventory: Inventory) -> Vault:
    """A vault that nobody else knows of: it ends with this process."""
    fd = create_vault("private")
    try:
        return Vault(fd, layout_of(job, inventory))
    finally:
        os.close(fd)


def layout_of(job: JobSpec, inventory: Inventory) -> VaultLayout:
    """How this job's vaults look."""
    itemsize = MASTER_DTYPE[job.model.precision].itemsize
    return VaultLayout.of(inventory, job.model.moe.num_experts, itemsize)


def slots_of(plan: Plan, inventory: Inventory, member: int) -> dict[int, tuple[int, ...]]:
    """Per experts block of the member's stage, the experts in its slots."""
    stage = plan.stages[plan.stage_of_member[member]]
    rank = stage.members.index(member)
    return {b: plan.slots[b][rank] for b in stage.blocks if inventory.blocks[b].is_experts}


def build_stage(
    job: JobSpec,
    inventory: Inventory,
    plan: Plan,
    member: int,
    device: torch.device,
    built: dict[str, nn.Module] | None = None,
) -> StageModel:
    """The layers that a member computes; its memory is bound later. `built`: as in `StageModel`."""
    index = plan.stage_of_member[member]
    return StageModel(
        job,
        inventory,
        plan.stages[index].blocks,
        slots_of(plan, inventory, member),
        is_first=index == 0,
        is_last=index == len(plan.stages) - 1,
        dtype=COMPUTE_DTYPE[job.model.precision],
        device=device,
        built=built,
    )
