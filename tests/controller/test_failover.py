"""Survivors go on with what is left; everybody alive tries again."""

from fake_job import small_job
from fake_world import World, assert_sound, decisions
from survival import NO_REPLACE, done, last_sentence, plans, rungs

from elasticmoe.controller.decisions import Fence, Form, Gather, Recover
from elasticmoe.controller.machine import outstanding
from elasticmoe.controller.phases import Phase
from elasticmoe.messages.commands import InstructGang
from elasticmoe.plan.types import Plan


def test_without_a_replacement_the_survivors_go_on_and_are_protected_again() -> None:
    world = World(job=small_job(protection=NO_REPLACE, workers={"settle_s": 60.0}))
    world.at_point("begun", 13, lambda _: world.kill(3))

    done(world)

    assert rungs(world) == ["failover"]
    assert last_sentence(world) == (
        "worker 3 was killed (signal 9); 3 workers went on without it after 0.02 s; "
        "step 13 redone; nothing lost; 3 units have one home until protection is restored"
    )
    (instruct,) = [c for c in world.commands if isinstance(c, InstructGang)]
    assert instruct.action == "protect"
    assert instruct.plan is not None
    assert min(len(homes) for homes in Plan.from_json(instruct.plan).homes) == 2
    assert world.state.protect is None
    assert 0 < world.state.tally.exposed_s < 0.3


def test_a_lost_node_leaves_the_rest_of_the_gang() -> None:
    world = World(nodes={"a": 2, "b": 2, "c": 2}, job=small_job(workers={"replicas": 6}))
    world.at_point("begun", 13, lambda _: world.lose_node("b"))

    done(world)

    assert rungs(world) == ["failover"]
    assert "node b was lost with workers 1 and 4 (agent does not answer); 4 workers went on" in (
        last_sentence(world)
    )


def test_a_failover_gives_unequal_stages_what_is_left() -> None:
    job = small_job(protection=NO_REPLACE, parallel={"stages": 2}, workers={"settle_s": 60.0})
    world = World(job=job)
    world.at_point("half", 13, lambda _: world.kill(0))

    done(world)

    before, after = plans(world)
    assert sorted(len(stage.members) for stage in before.stages) == [2, 2]
    assert sorted(len(stage.members) for stage in after.stages) == [1, 2]
    assert rungs(world) == ["failover"]


def test_survivors_read_a_vault_that_only_the_dead_had() -> None:
    job = small_job(protection={**NO_REPLACE, "redundancy": 1}, workers={"settle_s": 60.0})
    world = World(job=job)
    world.at_point("begun", 13, lambda _: world.kill(3))

    done(world)

    assert rungs(world) == ["failover"]
    assert decisions(world, Form)[-1].memory.adopted == ((1, 3),)


def lose_both_homes_of_a_unit(world: World) -> None:
    """One with its node; of the other only the process, so that its memory is left alone."""
    plan = world.state.plan
    assert plan is not None
    kept, gone = (plan.members[home] for home in plan.homes[0])
    world.lose_node(gone.node)
    world.kill(kept.worker)


def test_somebody_is_started_to_read_memory_on_a_node_where_nobody_is_left() -> None:
    world = World(nodes={"a": 1, "b": 1, "c": 1, "d": 1})
    world.at_point("begun", 13, lambda _: lose_both_homes_of_a_unit(world))

    done(world)

    assert [fired.split()[0] for fired in world.fired] == ["lose", "kill"]
    assert rungs(world) == ["failover"]
    reader = decisions(world, Gather)[-1]
    dead = int(world.fired[1].split()[1])
    assert "nobody is left on node" in reader.reason
    assert decisions(world, Form)[-1].memory.heirs == ((reader.hires[0][0], dead),)
    assert len(world.state.members) == 3


def test_memory_is_given_up_where_nobody_can_be_started_to_read_it() -> None:
    world = World(nodes={"a": 1, "b": 1, "c": 1, "d": 1})
    world.at_point("begun", 13, lambda _: lose_both_homes_of_a_unit(world))
    world.on_step[12] = lambda: setattr(world, "starts_die", True)
    world.submit()

    world.run(until=lambda: "checkpoint" in rungs(world))
    world.starts_die = False
    world.run()

    assert rungs(world) == ["failover", "failover", "checkpoint"]
    assert "no whole copy of unit" in "; ".join(decisions(world, Recover)[-1].passed_over)
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_protection_that_is_being_restored_is_asked_for_again_by_the_next_controller() -> None:
    world = World(job=small_job(protection=NO_REPLACE, workers={"settle_s": 60.0}))
    world.at_point("begun", 13, lambda _: world.kill(3))
    world.submit()
    world.run(until=lambda: world.state.protect is not None)

    repeated = outstanding(world.state)

    assert world.fired == ["kill 3"]
    assert [c.action for c in repeated if isinstance(c, InstructGang)] == ["protect"]
    world.restart_controller()
    world.run()
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_a_fault_while_protection_is_restored_loses_nothing() -> None:
    world = World(job=small_job(protection=NO_REPLACE, workers={"settle_s": 60.0}))
    world.at_point("begun", 13, lambda _: world.kill(3))
    world.at_point("prepared", 13, lambda _: world.kill(0), nth=1)

    done(world)

    assert world.fired == ["kill 3", "kill 0"]
    assert rungs(world) == ["failover", "failover"]


def test_after_a_failover_the_job_grows_again_when_it_has_settled() -> None:
    world = World(job=small_job(protection=NO_REPLACE, workers={"settle_s": 0.5}))
    world.at_point("begun", 8, lambda _: world.kill(3))

    done(world)

    assert [len(form.workers) for form in decisions(world, Form)] == [4, 3, 4]


def test_a_cut_connection_with_everybody_alive_is_tried_again() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.cut())

    done(world)

    assert rungs(world) == ["retry"]
    assert world.state.next_worker == 4
    assert last_sentence(world) == (
        "communication failed with everybody alive (worker 0: connection reset); "
        "4 workers went on from memory after 0.07 s; step 13 redone; nothing lost"
    )


def test_a_connection_that_fails_again_and_again_costs_whoever_reports_it_first() -> None:
    world = World()
    cuts: list[str] = []

    def cut(point: str, step: int, worker: int) -> None:
        if (point, step) == ("begun", 13) and len(cuts) < 3:
            cuts.append("cut")
            world.cut()

    world.on_point = cut

    done(world)

    assert len(cuts) == 3
    assert rungs(world) == ["retry", "retry", "replace"]
    (fence,) = decisions(world, Fence)
    assert fence.reason == "worker 0 looks worst after 2 retries"


def test_homes_that_only_the_end_of_the_gang_tells_of_are_counted_on() -> None:
    """The gang goes over to a plan with all homes, pauses behind the same step, and the report of
    this step is lost with the controller."""
    job = small_job(protection=NO_REPLACE, workers={"settle_s": 0.01})
    world = World(nodes={"a": 1, "b": 1, "c": 1, "d": 1}, job=job)
    world.at_point("begun", 13, lambda _: world.kill(3))
    world.submit()
    world.run(until=lambda: world.state.committed_step == 13)
    world.restart_controller(forgets=True)
    assert world.state.protect is not None
    assert world.state.committed_step == 12
    world.run(until=lambda: len(world.state.ended) == 1)
    assert world.state.protect is None
    exposed = plans(world)[-1]
    (keeper,) = {exposed.members[homes[0]].node for homes in exposed.homes if len(homes) == 1}

    world.lose_node(keeper)
    world.run()

    assert world.fired == ["kill 3", "restart", f"lose {keeper}"]
    assert rungs(world) == ["failover", "failover"]
    assert (world.state.tally.steps_rolled_back, world.state.timeline) == (0, 0)
    assert world.state.phase is Phase.DONE
    assert_sound(world)
