from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from elasticmoe.plan.keep import keep_members, keep_slots
from elasticmoe.plan.types import Inventory, Member
from elasticmoe.spec.job import JobSpec

Make = Callable[..., JobSpec]
MakeInventory = Callable[..., Inventory]
MakeMembers = Callable[..., tuple[Member, ...]]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_each_expert_gets_one_holder_and_holders_get_equally_many(
    make_job: Make, make_inventory: MakeInventory, data: st.DataObject
) -> None:
    inventory = make_inventory(make_job())
    units = inventory.units_of_block[inventory.moe_blocks[0].index]
    units = units[: data.draw(st.integers(1, len(units)))]
    members = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=20, unique=True))
    copies = st.lists(st.integers(0, 30), max_size=3, unique=True)
    present = {unit.index: data.draw(copies) for unit in units}

    slots = keep_slots(units, members, present)

    assert len(slots) == len(members)
    assert sorted(expert for experts in slots for expert in experts) == list(range(len(units)))
    assert all(list(experts) == sorted(experts) for experts in slots)
    assert max(map(len, slots)) - min(map(len, slots)) <= 1


def test_experts_stay_where_their_copies_are_as_far_as_there_is_room(
    make_job: Make, make_inventory: MakeInventory
) -> None:
    inventory = make_inventory(make_job())
    units = inventory.units_of_block[inventory.moe_blocks[0].index][:6]
    at = {0: [7], 1: [7], 2: [7], 3: [5], 4: [5, 7], 5: [9]}
    present = {units[expert].index: members for expert, members in at.items()}

    assert keep_slots(units, [5, 7, 9], present) == ((3, 4), (0, 1), (2, 5))
    assert keep_slots(units, [5, 7], present) == ((3, 4, 5), (0, 1, 2))
    assert keep_slots(units[:5], [5, 7], present) == ((3, 4), (0, 1, 2))


def test_workers_are_seated_where_their_copies_are(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    inventory = make_inventory(make_job())
    stage_of_block = {block.index: int(block.layer >= 2) for block in inventory.blocks}
    # Members 0 and 1 have everything of the second stage between them; 2 has all of the first.
    present = {
        unit.index: [unit.index % 2] if stage_of_block[unit.block] else [2]
        for unit in inventory.units
    }

    seated = keep_members(make_members(4, 1, 4), (2, 2), stage_of_block, inventory, present)

    assert seated == ((2, 3), (0, 1))


def test_the_only_copies_are_seated_where_there_is_room_to_spare(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    inventory = make_inventory(make_job())
    stage_of_block = {block.index: int(block.layer >= 2) for block in inventory.blocks}
    # Members 1 and 2 mirror each other in both stages; what 0 has, nobody else has.
    present = {
        unit.index: [0] if unit.expert % 2 else [1, 2]
        for layer in (1, 2)
        for unit in inventory.units_of_block[
            inventory.block_by_name[f"layer.{layer}.experts"].index
        ]
    }

    first, second = keep_members(make_members(3, 1, 3), (1, 2), stage_of_block, inventory, present)

    assert 0 in second
    assert len(first) == 1


def test_workers_without_copies_sit_beside_workers_of_their_node(
    make_job: Make, make_inventory: MakeInventory, make_members: MakeMembers
) -> None:
    inventory = make_inventory(make_job())
    stage_of_block = {block.index: int(block.layer >= 2) for block in inventory.blocks}
    present = {unit.index: [3 * stage_of_block[unit.block]] for unit in inventory.units}

    seated = keep_members(make_members(2, 2, 2), (2, 2), stage_of_block, inventory, present)

    assert seated == ((0, 1), (2, 3))
