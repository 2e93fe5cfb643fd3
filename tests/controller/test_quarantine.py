"""A node with repeated faults of its own is kept away from, as far as the job can do without it."""

from fake_gang import PARK_S
from fake_job import small_job
from fake_world import World, assert_sound, decisions
from survival import done, plans, rungs

from elasticmoe.controller.decisions import Casualty, Quarantine, Recover, Stay
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.quarantine import suspect_of
from elasticmoe.messages.worker import WorkerParked

BAD = "unit 0 (1 in all) did not match the hash recorded after its last update"


def corrupt(world: World, worker: int) -> None:
    """A worker finds its memory corrupted, parks and says so; its peers lose it."""
    gang, vault = world.gang, world.vaults[worker]
    assert gang is not None
    world.fired.append(f"corrupt {worker}")
    gang.broken = True
    for member in gang.members:
        if member != worker:
            world.later(PARK_S, lambda member=member: gang._park(member, "connection closed"))
    if vault.voted == vault.step + 1:
        vault.apply(1)
    vault.torn.add(min(vault.units))
    copies = vault.copies(worker)
    parked = WorkerParked(gang.generation, worker, 0, BAD, copies, "corrupted")
    world.report(0, worker, parked)


def disagree(world: World) -> int:
    """Two homes of a unit, on two nodes, find that they differ: neither is trusted. The unit."""
    gang = world.gang
    assert gang is not None
    homes = [tuple(gang.members[at] for at in some) for some in gang.plan.homes]
    unit = next(
        u
        for u, some in enumerate(homes)
        if {world.alive.get(worker) for worker in some} == {"a", "b"}
    )
    world.fired.append(f"disagree {homes[unit]}")
    gang.broken = True
    for member in gang.members:
        if member not in homes[unit]:
            world.later(PARK_S, lambda member=member: gang._park(member, "connection closed"))
    for worker in homes[unit]:
        vault = world.vaults[worker]
        if vault.voted == vault.step + 1:
            vault.apply(1)
        vault.torn.add(unit)
        text = f"unit {unit} (1 in all) differs between its homes"
        copies = vault.copies(worker)
        world.report(0, worker, WorkerParked(gang.generation, worker, 0, text, copies, "corrupted"))
    return unit


def on(world: World, node: str) -> int:
    """A member of the gang on a node."""
    return min(number for number in world.state.members if world.alive.get(number) == node)


def strike_often(world: World, node: str, *steps: int) -> None:
    for step in steps:
        world.on_step[step] = lambda: corrupt(world, on(world, node))


def test_the_third_fault_of_a_node_puts_it_in_quarantine_and_the_gang_moves_off() -> None:
    world = World()
    strike_often(world, "b", 5, 10, 15)

    done(world)

    assert len(world.fired) == 3
    (quarantine,) = decisions(world, Quarantine)
    assert (quarantine.node, quarantine.spared) == ("b", False)
    assert quarantine.reason.startswith("node b had 3 faults of its own in")
    assert "found corrupted memory" in quarantine.reason
    assert quarantine.reason.endswith("it gets no workers for 600 s")
    assert rungs(world) == ["retry"] * 3
    assert {member.node for member in plans(world)[-1].members} == {"a"}
    assert world.state.tally.nodes_quarantined == 1
    assert world.state.tally.regroupings == 1


def test_a_node_that_the_job_needs_is_kept_and_that_is_said_once() -> None:
    world = World(nodes={"a": 4})
    strike_often(world, "a", 3, 6, 9, 12, 15, 18, 21)

    done(world)

    assert len(world.fired) == 7
    (quarantine,) = decisions(world, Quarantine)
    assert quarantine.spared
    assert "it is kept, because 0 workers could run without it" in quarantine.reason
    assert decisions(world, Stay) == []
    assert len(world.state.members) == 4


def test_faults_of_several_nodes_at_once_put_nobody_in_quarantine() -> None:
    world = World()

    def both() -> None:
        world.kill(on(world, "a"))
        world.kill(on(world, "b"))

    for step in (5, 10, 15, 20):
        world.at_point("begun", step, lambda _: both())

    done(world)

    assert len(world.fired) == 8
    assert decisions(world, Quarantine) == []


def test_two_homes_that_differ_are_both_distrusted_and_no_node_is_blamed() -> None:
    world = World(job=small_job(checkpoint={"interval_steps": 5}))
    units: list[int] = []
    for step in (8, 13, 18):
        world.on_step[step] = lambda: units.append(disagree(world))

    world.submit()
    world.run()

    assert len(world.fired) == len(units) == 3
    assert world.state.phase is Phase.DONE
    recoveries = decisions(world, Recover)
    assert [one.rung for one in recoveries] == ["checkpoint"] * 3
    assert [one.step for one in recoveries] == [5, 10, 15]
    for one, unit in zip(recoveries, units, strict=True):
        assert f"no whole copy of unit {unit} " in "; ".join(one.passed_over)
        assert sum(sign.code == "corrupted" for sign in one.evidence) == 2
    assert decisions(world, Quarantine) == []
    assert_sound(world)


def test_faults_far_apart_are_chance() -> None:
    world = World(job=small_job(protection={"quarantine_window_s": 0.3}))
    strike_often(world, "b", 5, 15, 25)

    done(world)

    assert len(world.fired) == 3
    assert decisions(world, Quarantine) == []


def test_quarantine_can_be_switched_off() -> None:
    world = World(job=small_job(protection={"quarantine_faults": 0}))
    strike_often(world, "b", 5, 10, 15, 20)

    done(world)

    assert len(world.fired) == 4
    assert decisions(world, Quarantine) == []


def test_after_its_time_the_node_is_used_again_and_the_next_time_is_twice_as_long() -> None:
    protection = {"quarantine_s": 0.5, "quarantine_faults": 1}
    job = small_job(protection=protection, workers={"settle_s": 0.05}, schedule={"steps": 60})
    world = World(job=job)
    strike_often(world, "b", 5)
    world.submit()
    world.run(until=lambda: len(plans(world)) >= 3 and world.state.committed_step >= 20)
    used = [{member.node for member in plan.members} for plan in plans(world)]
    assert used[-2:] == [{"a"}, {"a", "b"}]

    world.on_step[30] = lambda: corrupt(world, on(world, "b"))
    world.run()

    lasted = [one.until_s - one.at_s for one in decisions(world, Quarantine)]
    assert [round(seconds, 3) for seconds in lasted] == [0.5, 1.0]
    assert world.state.tally.steps_rolled_back == 0


def test_a_node_loss_and_a_workers_own_error_are_no_ones_fault() -> None:
    lost = Casualty("node_lost", 2, "b", "agent does not answer")
    failed = Casualty("failed", 2, "b", "out of memory", code="out_of_memory")
    late = Casualty("stalled", -1, "", "no step for 3 s")

    assert [suspect_of([one]) for one in (lost, failed, late)] == ["", "", ""]
