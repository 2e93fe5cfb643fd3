import time
from collections.abc import Callable

import numpy as np
import pytest

from elasticmoe.plan.cost import expected_bubble, plan_traffic, step_flops
from elasticmoe.plan.describe import describe_plan, format_amount, format_ranges
from elasticmoe.plan.exchange import plan_exchange
from elasticmoe.plan.holders import holder_matrix, home_matrix
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.memory import (
    Overfull,
    find_overfull,
    host_bytes,
    plan_memory,
    protection_options,
)
from elasticmoe.plan.types import Inventory, Member
from elasticmoe.spec.job import JobSpec

Make = Callable[..., JobSpec]
MakeInventory = Callable[..., Inventory]
MakeMembers = Callable[..., tuple[Member, ...]]


def test_the_text_of_a_plan_says_what_a_reader_asks(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job()
    inventory = make_inventory(job)

    text = "\n".join(
        describe_plan(job, inventory, make_plan(job, inventory, make_members(2, 2, 2)))
    )

    for words in (
        "4 workers on 2 nodes in 2 failure domains, 2 stages",
        "16 samples of 64 tokens in 2 waves of 8",
        "primary home of",
        "of workers 2-3",
        "activations",
        "gradients to primary homes",
        "bubble: ",
        "any one failure domain is lost",
        "redundancy 1, undo copy",
        "redundancy 2 (this job)",
        "redundancy 3",
        "two snapshots with copies",
        "per snapshot",
    ):
        assert words in text
    assert "AT RISK" not in text


def test_the_671b_geometry_on_128_workers_is_planned_and_described_within_seconds(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job(
        "parallel.stages=16",
        "parallel.expert_replicas=one",
        "batch.global_samples=3840",
        "batch.num_waves=60",
        "data.seq_len=4096",
        preset="deepseek-v3",
    )
    inventory = make_inventory(job, piece=2**18)
    assert len(inventory.units) > 50_000

    started = time.process_time()
    plan = make_plan(job, inventory, make_members(16, 8, 4))
    lines = describe_plan(job, inventory, plan)
    seconds = time.process_time() - started

    assert len(plan.stages) == 16
    assert max(stage.end_layer - stage.first_layer for stage in plan.stages) <= 8
    assert any(line == "... and 96 more workers" for line in lines)
    assert seconds < 10


def test_one_worker_sends_nothing_and_waits_for_nobody(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job()
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(1, 1, 1))

    assert plan_traffic(job, inventory, plan).total_M.tolist() == [0]
    assert expected_bubble(job, inventory, plan) == 0
    assert describe_plan(job, inventory, plan)


@pytest.mark.parametrize("holding", ["all", "one"])
def test_counted_traffic_equals_the_exchange_tables(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers, holding: str
) -> None:
    job = make_job(f"parallel.expert_replicas={holding}")
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(5, 1, 2))

    traffic = plan_traffic(job, inventory, plan)

    for member in range(5):
        tables = plan_exchange(plan, inventory, member)
        for sent_M, routes in (
            (traffic.gradients_M, tables.gradients),
            (traffic.forwards_M, tables.forwards),
            (traffic.weights_M, tables.weights),
        ):
            away = sum(
                inventory.units[unit].numel
                for peer, units in enumerate(routes.send)
                for unit in units
                if peer != member
            )
            assert sent_M[member] == 4 * away
    assert (traffic.tokens_M.sum() == 0) == (holding == "all")


def test_memory_counts_every_home_and_every_held_weight(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job("parallel.stages=1", "parallel.expert_replicas=all")
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(2, 1, 2))
    numel = sum(unit.numel for unit in inventory.units)

    use = plan_memory(job, inventory, plan)

    assert use.weights_M.tolist() == [4 * numel] * 2
    assert use.gradients_M.tolist() == [4 * numel] * 2
    assert use.homes_M.tolist() == [12 * numel] * 2
    assert use.checkpoint_M.sum() == 12 * numel  # each unit is written by one member
    assert (use.total_M == use.shared_M + use.compute_M + use.checkpoint_M).all()
    on_cpu = host_bytes(plan, use, homes_on_host=True, device_is_host=True)
    assert on_cpu == {"node-0": use.total_M[0], "node-1": use.total_M[1]}
    on_gpu = host_bytes(plan, use, homes_on_host=False, device_is_host=False)
    assert on_gpu == {"node-0": use.checkpoint_M[0], "node-1": use.checkpoint_M[1]}


@pytest.mark.parametrize("holding", ["all", "one"])
@pytest.mark.parametrize("stages", [1, 2])
def test_what_is_added_up_by_member_is_what_the_whole_table_says(
    make_job: Make,
    make_inventory: MakeInventory,
    make_members: MakeMembers,
    holding: str,
    stages: int,
) -> None:
    job = make_job(f"parallel.stages={stages}", f"parallel.expert_replicas={holding}")
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(5, 1, 2))
    numel_U = np.array([unit.numel for unit in inventory.units])
    holders_UM = holder_matrix(inventory, plan.stages, plan.slots)
    homes_UM = home_matrix(plan.homes, 5)
    primary_UM = np.zeros_like(homes_UM)
    primary_UM[np.arange(len(numel_U)), [homes[0] for homes in plan.homes]] = True
    tables = [plan_exchange(plan, inventory, member) for member in range(5)]

    def away(*exchanges: str) -> list[int]:
        """Elements that each member sends to others and receives from others."""
        return [
            sum(
                int(numel_U[units].sum())
                for name in exchanges
                for side in (getattr(own, name).send, getattr(own, name).receive)
                for peer, units in enumerate(side)
                if peer != member
            )
            for member, own in enumerate(tables)
        ]

    use = plan_memory(job, inventory, plan)

    assert use.weights_M.tolist() == (4 * (numel_U @ holders_UM)).tolist()
    assert use.homes_M.tolist() == (12 * (numel_U @ homes_UM)).tolist()
    assert use.checkpoint_M.tolist() == (12 * (numel_U @ primary_UM)).tolist()
    reduced, published = away("gradients", "forwards"), away("weights")
    assert sum(published) < sum(away("gradients"))  # homes that hold have theirs from themselves
    assert use.buffers_M.tolist() == [4 * (a + b) for a, b in zip(reduced, published, strict=True)]


def test_two_workers_that_are_homes_of_all_they_hold_need_no_buffers_for_weights(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job("parallel.stages=1", "parallel.expert_replicas=all", "model.precision=bf16")
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(2, 1, 2))
    numel = sum(unit.numel for unit in inventory.units)

    use = plan_memory(job, inventory, plan)

    # Each sends or receives the gradient of every unit, and then its reduced gradient.
    assert use.buffers_M.tolist() == [8 * numel] * 2


def test_the_node_that_lacks_most_memory_is_named() -> None:
    needed = {"a": 10, "b": 30, "c": 99}

    assert find_overfull(needed, {"a": 10, "b": 30, "c": 0}) == ()
    both = (Overfull("b", 30, 20), Overfull("a", 10, 9))
    assert find_overfull(needed, {"a": 9, "b": 20, "c": 0}) == both
    assert find_overfull(needed, {"a": 10, "b": 40}, 1) == (Overfull("a", 11, 10),)


def test_recomputed_layers_keep_less_where_waves_are_in_flight(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    kept = []
    for overrides in ((), ("model.recompute_layers=[0, 4]",)):
        job = make_job("batch.num_waves=8", *overrides)
        inventory = make_inventory(job)
        plan = make_plan(job, inventory, make_members(4, 1, 2))
        first_stage = list(plan.stages[0].members)
        kept.append(plan_memory(job, inventory, plan).activations_M[first_stage])

    assert (kept[1] < kept[0]).all()


def test_what_each_way_to_protect_costs_adds_up(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job()
    inventory = make_inventory(job)
    numel = sum(unit.numel for unit in inventory.units)
    largest = max(unit.numel for unit in inventory.units)

    plan = make_plan(job, inventory, make_members(4, 1, 4))
    options = {option.name: option for option in protection_options(job, inventory, plan)}

    assert len(options) == 5
    one = options["redundancy 1, undo copy"]
    assert (one.homes_bytes, one.prepared_bytes) == (3 * numel, numel)
    assert (one.further_bytes, one.step_bytes, one.snapshot_bytes) == (12 * largest, 0, 0)
    for homes in (2, 3):
        option = options[f"redundancy {homes}"]
        assert option.homes_bytes == 3 * homes * numel
        assert (option.step_bytes, option.snapshot_bytes) == ((homes - 1) * numel, 0)
    copies = options["redundancy 1, undo copy, two snapshots with copies"]
    parity = options["redundancy 1, undo copy, two snapshots with parity of 3"]
    assert copies.further_bytes == 12 * largest + 2 * (3 * numel + 3 * numel)
    both = describe_plan(make_job("protection.snapshots=copy"), inventory, plan)
    (row,) = (line for line in both if "redundancy 2, two snapshots with copies" in line)
    assert row.split()[-4:] == [*format_amount(numel).split(), *format_amount(3 * numel).split()]
    assert parity.further_bytes == 12 * largest + 2 * (3 * numel + 3 * numel // 3)
    assert (parity.step_bytes, parity.snapshot_bytes) == (0, 3 * numel)
    # What the job has is what its plan really keeps and sends.
    chosen = options["redundancy 2"]
    use, traffic = plan_memory(job, inventory, plan), plan_traffic(job, inventory, plan)
    assert chosen.homes_bytes == use.homes_M.mean()
    assert chosen.prepared_bytes == use.prepared_M.mean()
    assert chosen.step_bytes == traffic.forwards_M.mean()


def test_ways_to_protect_that_need_more_workers_are_left_out(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job()
    inventory = make_inventory(job)

    def names(*gang: int) -> list[str]:
        plan = make_plan(job, inventory, make_members(*gang))
        return [option.name for option in protection_options(job, inventory, plan)]

    assert names(1, 1, 1) == ["redundancy 1, undo copy"]
    assert names(1, 2, 1) == ["redundancy 1, undo copy", "redundancy 2"]
    assert names(2, 1, 1)[-1].endswith("two snapshots with copies")
    assert names(3, 1, 1)[-1].endswith("two snapshots with parity of 2")


@pytest.mark.parametrize("kind", ["copy", "parity"])
def test_what_is_said_of_snapshots_is_what_the_plan_keeps(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers, kind: str
) -> None:
    job = make_job("protection.redundancy=1", f"protection.snapshots={kind}")
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(4, 1, 4))

    use = plan_memory(job, inventory, plan)
    text = "\n".join(describe_plan(job, inventory, plan))

    named = "copies" if kind == "copy" else "parity of 3"
    (option,) = [
        option
        for option in protection_options(job, inventory, plan)
        if option.name == f"redundancy 1, undo copy, two snapshots with {named}"
    ]
    assert f"{option.name} (this job)" in text
    largest = max(unit.numel for unit in inventory.units)
    kept = option.further_bytes - 12 * largest
    # Groups of unequal units are as large as their largest one.
    assert kept == pytest.approx(use.snapshots_M.mean(), rel=0.0 if kind == "copy" else 0.15)
    assert use.homes_M.mean() == option.homes_bytes + 12 * largest  # the undo copy


def test_snapshots_beside_mirrors_cost_traffic_of_their_own(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    job = make_job("protection.snapshots=copy")
    inventory = make_inventory(job)
    plan = make_plan(job, inventory, make_members(4, 1, 4))

    options = {option.name: option for option in protection_options(job, inventory, plan)}

    both = options["redundancy 2, two snapshots with copies"]
    assert both.step_bytes == options["redundancy 2"].step_bytes > 0
    alone = options["redundancy 1, undo copy, two snapshots with copies"]
    assert both.snapshot_bytes == alone.snapshot_bytes > 0


def test_step_flops_are_three_forward_passes_of_the_active_experts(
    make_job: Make, make_inventory: MakeInventory
) -> None:
    job = make_job("model.mtp_depth=0")
    inventory = make_inventory(job)
    per_token = sum(
        block.flops_per_token * (4 if block.is_experts else 1) for block in inventory.blocks
    )

    assert np.isclose(step_flops(job, inventory), 3 * per_token * 16 * 64)


def test_numbers_are_written_as_ranges() -> None:
    assert format_ranges([]) == "none"
    assert format_ranges([3]) == "3"
    assert format_ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
