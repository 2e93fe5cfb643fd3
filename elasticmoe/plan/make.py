"""Makes a plan: the one place that decides who computes and who keeps what."""

from itertools import compress
from operator import not_

from elasticmoe.errors import PlanError
from elasticmoe.plan.experts import decide_holding, plan_slots
from elasticmoe.plan.holders import IntArray, unit_holders, unit_sizes
from elasticmoe.plan.homes import Holders, Present, holders_with_copy, keep_homes, plan_homes
from elasticmoe.plan.keep import keep_members, keep_slots
from elasticmoe.plan.layout import Cut, even_ranges, plan_cuts, plan_members
from elasticmoe.plan.schedule import plan_timetable
from elasticmoe.plan.types import Inventory, Member, Plan, Stage
from elasticmoe.spec.job import JobSpec


def make_plan(
    job: JobSpec,
    inventory: Inventory,
    members: tuple[Member, ...],
    *,
    present: Present | None = None,
) -> Plan:
    """Lay a job out on the members that are there; equal input gives an equal plan.

    Args:
        members: at least one; their order becomes the rank in the world group.
        present: unit -> members (positions) that have a whole copy of it. Homes then stay where
            copies are, and no mirror is made; `moves.plan_moves` says what still has to move.

    Raises:
        PlanError: there is nobody to lay the job out on.
    """
    if not members:
        raise PlanError("The gang is empty. Add a node, or wait for one.")
    cuts = plan_cuts(job, inventory, len(members))
    sizes = tuple(cut.workers for cut in cuts)
    stages, slots = _lay_out(job, inventory, cuts, plan_members(members, sizes))
    holders, numel_U = unit_holders(inventory, stages, slots), unit_sizes(inventory)
    redundancy = job.protection.redundancy
    if present is None:
        homes = plan_homes(members, holders, numel_U, redundancy)
        return Plan(members, stages, slots, homes, job.batch.num_waves, job.batch.wave_samples)
    with_copy = holders_with_copy(holders, present)
    if missing := _elements_without(with_copy, numel_U):
        stage_of_block = {b: s for s, stage in reversed([*enumerate(stages)]) for b in stage.blocks}
        named = keep_members(members, sizes, stage_of_block, inventory, present)
        kept = _lay_out(job, inventory, cuts, named, present)
        kept_holders = unit_holders(inventory, *kept)
        kept_with_copy = holders_with_copy(kept_holders, present)
        if _elements_without(kept_with_copy, numel_U) < missing:
            (stages, slots), holders, with_copy = kept, kept_holders, kept_with_copy
    candidates = [copies or held for copies, held in zip(with_copy, holders, strict=True)]
    homes = keep_homes(members, candidates, numel_U, redundancy, present)
    return Plan(members, stages, slots, homes, job.batch.num_waves, job.batch.wave_samples)


def _elements_without(with_copy: Holders, numel_U: IntArray) -> int:
    """What has to move before training goes on: elements of units that no holder has."""
    return sum(compress(numel_U.tolist(), map(not_, with_copy)))


def _lay_out(
    job: JobSpec,
    inventory: Inventory,
    cuts: tuple[Cut, ...],
    named: tuple[tuple[int, ...], ...],
    present: Present | None = None,
) -> tuple[tuple[Stage, ...], dict[int, tuple[tuple[int, ...], ...]]]:
    """Stages and slots; experts stay where copies are if it is known where they are."""
    stages = tuple(
        Stage(
            first_layer=cut.first_layer,
            end_layer=cut.end_layer,
            members=in_stage,
            blocks=stage_blocks(job, inventory, cut.first_layer, cut.end_layer),
            samples=even_ranges(job.batch.wave_samples, cut.workers),
            timetable=plan_timetable(
                job.parallel.schedule,
                stage=index,
                num_stages=len(cuts),
                num_waves=job.batch.num_waves,
            ),
        )
        for index, (cut, in_stage) in enumerate(zip(cuts, named, strict=True))
    )
    slots = {}
    for stage in stages:
        holding = decide_holding(job, inventory, len(stage.members))
        for block in stage.blocks:
            if not inventory.blocks[block].is_experts:
                continue
            if present is not None and holding == "one":
                units = inventory.units_of_block[block]
                slots[block] = keep_slots(units, stage.members, present)
            else:
                num_experts = inventory.blocks[block].num_experts
                slots[block] = plan_slots(holding, num_experts, len(stage.members))
    return stages, slots


def stage_blocks(
    job: JobSpec, inventory: Inventory, first_layer: int, end_layer: int
) -> tuple[int, ...]:
    """Blocks that a stage with layers [first_layer, end_layer) computes, in network order.

    The last stage also reads the embedding if MTP modules or a tied head use it.
    """
    is_last = end_layer == job.model.num_layers
    shares_embedding = job.model.mtp_depth > 0 or job.model.tied_embeddings
    return tuple(
        block.index
        for block in inventory.blocks
        if first_layer <= block.layer < end_layer
        or (block.name == "embedding" and (first_layer == 0 or (is_last and shares_embedding)))
        or (block.layer < 0 and block.name != "embedding" and is_last)
    )
