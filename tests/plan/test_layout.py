import itertools
from collections.abc import Callable

import numpy as np
import pytest

from elasticmoe.errors import PlanError
from elasticmoe.plan.layout import even_ranges, layer_costs, plan_cuts, plan_members
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.types import Inventory, Member, Plan
from elasticmoe.spec.job import JobSpec

Make = Callable[..., JobSpec]
MakeInventory = Callable[..., Inventory]
MakeMembers = Callable[..., tuple[Member, ...]]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 7, 8, 13])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_every_worker_and_every_layer_is_used_exactly_once(
    make_job: Make,
    make_inventory: MakeInventory,
    make_members: MakeMembers,
    workers: int,
    stages: int,
) -> None:
    job = make_job(f"parallel.stages={stages}")
    inventory = make_inventory(job)

    plan = make_plan(job, inventory, make_members(workers, 1, 3))

    assert len(plan.stages) == min(stages, workers)
    layers = [list(range(stage.first_layer, stage.end_layer)) for stage in plan.stages]
    assert all(layers)
    assert list(itertools.chain(*layers)) == list(range(job.model.num_layers))
    assert sorted(m for stage in plan.stages for m in stage.members) == list(range(workers))
    assert {block for stage in plan.stages for block in stage.blocks} == set(
        range(len(inventory.blocks))
    )
    for stage in plan.stages:
        assert stage.samples == even_ranges(plan.wave_samples, len(stage.members))


@pytest.mark.parametrize("workers, stages", [(3, 2), (5, 2), (6, 3), (7, 3), (8, 4)])
def test_the_slowest_worker_is_within_a_fifth_of_the_best_possible(
    make_job: Make, make_inventory: MakeInventory, workers: int, stages: int
) -> None:
    job = make_job(f"parallel.stages={stages}", "parallel.expert_replicas=all")
    inventory = make_inventory(job)
    costs = layer_costs(job, inventory)
    cost_L = costs.dense_L + costs.routed_L
    samples = job.batch.wave_samples

    def slowest(ends: tuple[int, ...], counts: tuple[int, ...]) -> float:
        edges = (0, *ends, len(cost_L))
        return max(
            cost_L[a:b].sum() * -(-samples // count) / samples
            for a, b, count in zip(edges, edges[1:], counts, strict=False)
        )

    best = min(
        slowest(ends, counts)
        for ends in itertools.combinations(range(1, len(cost_L)), stages - 1)
        for counts in itertools.product(range(1, workers + 1), repeat=stages)
        if sum(counts) == workers
    )

    cuts = plan_cuts(job, inventory, workers)

    found = slowest(tuple(c.end_layer for c in cuts[:-1]), tuple(c.workers for c in cuts))
    assert found <= 1.2 * best * (1 + 1e-9)


def test_equal_layers_on_a_round_number_of_workers_are_cut_evenly(
    make_job: Make, make_inventory: MakeInventory
) -> None:
    job = make_job("parallel.stages=3", "model.mtp_depth=0", preset="small")

    cuts = plan_cuts(job, make_inventory(job), 6)

    assert [(c.first_layer, c.end_layer, c.workers) for c in cuts] == [
        (0, 2, 2),
        (2, 4, 2),
        (4, 6, 2),
    ]


def test_the_same_input_gives_the_same_plan(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job()

    plans = [make_plan(job, make_inventory(job), make_members(3, 2, 2)) for _ in range(2)]

    assert plans[0] == plans[1]
    assert plans[0].digest == plans[1].digest


def test_a_plan_survives_json(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job()
    plan = make_plan(job, make_inventory(job), make_members(2, 2, 2))

    assert Plan.from_json(plan.to_json()) == plan


def test_nobody_to_plan_for_is_an_error(make_job: Make, make_inventory: MakeInventory) -> None:
    job = make_job()

    with pytest.raises(PlanError, match="empty"):
        make_plan(job, make_inventory(job), ())


def test_the_last_stage_reads_the_embedding_only_if_something_there_needs_it(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    for overrides, expected in [
        (("model.mtp_depth=0",), (0,)),
        (("model.mtp_depth=1",), (0, 1)),
        (("model.mtp_depth=0", "model.tied_embeddings=true"), (0, 1)),
    ]:
        job = make_job(*overrides)
        inventory = make_inventory(job)

        plan = make_plan(job, inventory, make_members(2, 1, 1))

        assert plan.stages_of_block[inventory.block_by_name["embedding"].index] == expected
        assert plan.stages_of_block[inventory.block_by_name["head"].index] == (1,)


def test_workers_of_one_node_stay_in_one_stage(make_members: MakeMembers) -> None:
    members = make_members(4, 2, 2)
    shuffled = tuple(members[i] for i in (0, 2, 4, 6, 1, 3, 5, 7))

    stages = plan_members(shuffled, (4, 2, 2))

    nodes = [{shuffled[m].node for m in stage} for stage in stages]
    assert [len(of_stage) for of_stage in nodes] == [2, 1, 1]
    assert sorted(m for stage in stages for m in stage) == list(range(8))
    assert {shuffled[m].domain for m in stages[0]} == {"domain-0"}


def test_a_worker_without_samples_is_still_in_its_stage(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job("parallel.stages=1", "batch.global_samples=4", "batch.num_waves=2")

    plan = make_plan(job, make_inventory(job), make_members(3, 1, 1))

    sizes = [end - start for start, end in plan.stages[0].samples]
    assert sorted(sizes) == [0, 1, 1]


@pytest.mark.parametrize("asked, share", [("all", 16), ("one", 8)])
def test_experts_are_held_as_asked(
    make_job: Make,
    make_inventory: MakeInventory,
    make_members: MakeMembers,
    asked: str,
    share: int,
) -> None:
    job = make_job(f"parallel.expert_replicas={asked}")

    plan = make_plan(job, make_inventory(job), make_members(4, 1, 2))

    assert {len(experts) for slots in plan.slots.values() for experts in slots} == {share}


def test_auto_replicates_when_the_step_has_many_tokens_and_shards_when_it_has_few(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    held = []
    for seq_len in (16, 4096):
        job = make_job(f"data.seq_len={seq_len}")
        plan = make_plan(job, make_inventory(job), make_members(4, 1, 2))
        held.append({len(experts) for slots in plan.slots.values() for experts in slots})

    assert held == [{8}, {16}]


def test_even_ranges_cover_everything_in_order() -> None:
    for count, parts in itertools.product(range(9), range(1, 6)):
        ranges = even_ranges(count, parts)

        sizes = np.array([end - start for start, end in ranges])
        assert ranges[0][0] == 0
        assert ranges[-1][1] == count
        assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
        assert sizes.max() - sizes.min() <= 1
