"""Makes a plan: the one place that decides who computes and who keeps what."""

from elasticmoe.errors import PlanError
from elasticmoe.plan.experts import decide_holding, plan_slots
from elasticmoe.plan.holders import holder_matrix, unit_sizes
from elasticmoe.plan.homes import plan_homes
from elasticmoe.plan.layout import even_ranges, plan_cuts, plan_members
from elasticmoe.plan.schedule import plan_timetable
from elasticmoe.plan.types import Inventory, Member, Plan, Stage
from elasticmoe.spec.job import JobSpec


def make_plan(job: JobSpec, inventory: Inventory, members: tuple[Member, ...]) -> Plan:
    """Lay a job out on the members that are there; equal input gives an equal plan.

    Args:
        members: at least one; their order becomes the rank in the world group.

    Raises:
        PlanError: there is nobody to lay the job out on.
    """
    if not members:
        raise PlanError("The gang is empty. Add a node, or wait for one.")
    cuts = plan_cuts(job, inventory, len(members))
    named = plan_members(members, tuple(cut.workers for cut in cuts))
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
    slots = {
        block: plan_slots(
            decide_holding(job, inventory, len(stage.members)),
            inventory.blocks[block].num_experts,
            len(stage.members),
        )
        for stage in stages
        for block in stage.blocks
        if inventory.blocks[block].is_experts
    }
    homes = plan_homes(
        members,
        holder_matrix(inventory, stages, slots),
        unit_sizes(inventory),
        job.protection.redundancy,
    )
    return Plan(members, stages, slots, homes, job.batch.num_waves, job.batch.wave_samples)


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
