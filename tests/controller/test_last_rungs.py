"""Waiting, ends, and causes that follow the work."""

from fake_job import small_job
from fake_world import World, assert_sound, decisions
from survival import NO_REPLACE, done, last_sentence, rungs

from elasticmoe.controller.decisions import Form, GiveUp, Recover, Wait
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.record import Decided


def test_a_job_that_waits_for_nodes_goes_on_from_memory() -> None:
    world = World(nodes={"a": 1, "b": 1}, job=small_job(workers={"replicas": 2}))
    world.at_point("half", 13, lambda _: world.lose_node("b"))
    world.submit()
    world.run()
    assert world.state.phase is Phase.WAITING

    world.add_node("c", 1)
    world.run()

    (wait,) = decisions(world, Wait)
    assert (wait.from_memory, wait.step) == (True, 13)
    assert world.state.phase is Phase.DONE
    assert world.state.tally.steps_rolled_back == 0
    assert_sound(world)


def test_a_death_after_the_last_vote_still_saves_the_last_step() -> None:
    world = World()
    world.at_point("half", 30, lambda _: world.kill(2))

    done(world)

    assert rungs(world) == ["replace"]
    assert world.state.newest is not None
    assert world.state.newest.step == 30


def test_a_death_while_the_last_checkpoint_is_written_loses_nothing() -> None:
    world = World()
    world.submit()
    world.run(until=lambda: len(world.state.ended) == 2)

    world.kill(3)
    world.run()

    assert world.fired == ["kill 3"]
    assert rungs(world) == ["replace"]
    assert world.state.tally.steps_rolled_back == 0
    assert_sound(world)


def test_memory_that_is_not_what_it_should_be_leads_to_the_checkpoint() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.kill(3))
    world.submit()
    world.run(until=lambda: world.state.generation == 2)

    world.fail(0, "not_whole", 12)
    world.run()

    assert world.fired == ["kill 3", "fail 0"]
    assert rungs(world) == ["replace", "checkpoint"]
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_memory_found_corrupted_while_it_is_rolled_forward_comes_from_another_home() -> None:
    world = World()
    world.at_point("half", 13, lambda _: world.kill(3))
    spoiled: list[int] = []

    def spoil(_: int) -> None:
        unit = next(unit for unit, at in world.vaults[1].units.items() if at == 13)
        world.vaults[1].torn.add(unit)
        spoiled.append(unit)
        assert world.gang is not None
        world.gang.found[1] = f"unit {unit} did not match its hash"
        world.gang.break_up("a member has left")

    world.at_point("opened", 13, spoil)

    done(world)

    assert len(spoiled) == 1
    assert rungs(world) == ["replace", "retry"]
    assert decisions(world, Recover)[1].reason.startswith(
        f"worker 1 found corrupted memory: unit {spoiled[0]} did not match its hash; the same 4"
    )
    moved = {unit for unit, _, _ in decisions(world, Form)[-1].memory.moves}
    assert set(spoiled) < moved  # the dead worker left a torn unit too
    assert "2 units repaired from another home, 4 workers went on" in last_sentence(world)
    assert "everybody alive" not in last_sentence(world)


def test_workers_that_do_not_start_on_a_node_lead_to_a_failover() -> None:
    world = World(job=small_job(workers={"settle_s": 60.0}))
    world.at_point("begun", 13, lambda _: world.kill(3))
    world.on_step[12] = lambda: setattr(world, "starts_die", True)

    done(world)

    assert rungs(world)[-1] == "failover"
    assert len(world.state.members) == 3


def test_a_killed_worker_that_dies_again_at_the_same_step_ends_the_job_in_the_end() -> None:
    job = small_job(protection={"max_restarts": 4, "restart_backoff_s": 0.0})
    world = World(job=job)

    def out_of_memory(point: str, step: int, worker: int) -> None:
        if (point, step) == ("prepared", 13) and worker == world.state.members[1]:
            world.kill(worker)

    world.on_point = out_of_memory
    world.submit()

    world.run()

    assert len(world.fired) == 5
    assert world.state.phase is Phase.FAILED
    assert set(rungs(world)) <= {"replace", "failover"}
    assert world.state.tally.steps_rolled_back == 0
    assert decisions(world, GiveUp)[0].code == "crash_loop"


def test_kills_in_a_row_at_one_step_give_nothing_up_that_is_whole_in_memory() -> None:
    world = World()

    def hunt(point: str, step: int, worker: int) -> None:
        if (point, step) == ("begun", 13) and len(world.fired) < 8:
            world.kill(world.state.members[0])

    world.on_point = hunt
    done(world)

    assert len(world.fired) == 8
    assert "checkpoint" not in rungs(world)
    assert world.state.tally.steps_rolled_back == 0


def test_every_recovery_says_why_cheaper_rungs_did_not_apply() -> None:
    world = World(job=small_job(protection=NO_REPLACE))
    world.at_point("begun", 13, lambda _: world.kill(3))

    done(world)

    (recovery,) = [
        record.body.decision
        for record in world.records
        if isinstance(record.body, Decided) and isinstance(record.body.decision, Recover)
    ]
    assert recovery.passed_over == (
        "retry: worker 3 is gone",
        "replace: left out by protection.skip_rungs",
    )
    assert recovery.settled.startswith("worker ")
