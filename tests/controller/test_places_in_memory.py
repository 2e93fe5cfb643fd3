"""How many workers a node has memory for: found once, kept to until other nodes are there."""

from fake_job import small_job
from fake_world import World, assert_sound, decisions
from survival import rungs

from elasticmoe.controller.avoided import limits
from elasticmoe.controller.decisions import Drain, Form, Gather, Protect, Recover, Stay, Wait
from elasticmoe.controller.fitting import Crowded, overfull_nodes
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.state import Worker, WorkerStatus
from elasticmoe.messages.events import NodeLeaving, NodeUp
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.memory import Overfull, host_bytes, plan_memory
from elasticmoe.plan.types import Member, Plan
from elasticmoe.spec.job import JobSpec

ACTIVE = small_job(data={"seq_len": 1024})
GIB = 2**30


def needed(job: JobSpec, nodes: str) -> dict[str, int]:
    """What a fresh layout of workers on nodes (one letter each) needs of every node."""
    inventory = World(job=job).inventory
    plan = make_plan(job, inventory, [Member(n, node, node) for n, node in enumerate(nodes)])
    use = plan_memory(job, inventory, plan)
    return host_bytes(plan, use, homes_on_host=True, device_is_host=True)


def sizes(world: World) -> list[dict[str, int]]:
    """Workers per node of every generation."""
    found = []
    for form in decisions(world, Form):
        nodes = [member.node for member in Plan.from_json(form.plan).members]
        found.append({node: nodes.count(node) for node in sorted(set(nodes))})
    return found


def pauses(world: World) -> list[str]:
    return [drain.purpose for drain in decisions(world, Drain) if drain.purpose != "finish"]


def test_after_a_wait_a_large_node_is_used_though_the_small_one_has_free_places() -> None:
    world = World(job=ACTIVE, nodes={"a": 2, "b": 2}, small_nodes={"a": 24_000, "b": 24_000})
    world.on_step[5] = lambda: world.deliver(NodeUp(world.now_s, "a", "a", "host", 4, 24_000))
    world.at_point("begun", 13, lambda _: world.lose_node("b"))
    world.submit()
    world.run(limit_s=60.0)

    assert world.fired == ["lose b"]
    assert world.state.phase is Phase.WAITING
    (wait,) = decisions(world, Wait)
    assert limits(world.state) == {"a": 2} == dict(wait.limits)
    assert len(decisions(world, Gather)) == 1  # no more where there is too little memory for two

    world.add_node("c", 4)
    world.run()

    assert world.state.phase is Phase.DONE
    assert sizes(world)[-1] == {"a": 2, "c": 2}
    assert len(decisions(world, Wait)) == 1
    assert world.state.tally.steps_rolled_back == 0
    assert_sound(world)


def test_a_node_that_is_there_first_is_not_filled_beyond_its_memory_and_the_job_grows() -> None:
    world = World(job=ACTIVE, nodes={"a": 4, "b": 2}, memory_bytes=24_000)
    world.submit()
    world.run()

    assert world.state.phase is Phase.DONE
    assert len(decisions(world, Gather)[0].hires) == 4  # all on the first node
    assert sizes(world)[-1] == {"a": 2, "b": 2}
    assert decisions(world, Wait) == []
    assert len(pauses(world)) <= 1
    assert_sound(world)


def test_a_node_that_holds_one_home_of_each_unit_and_not_two_is_not_grown_from() -> None:
    job = small_job(
        workers={"replicas": 2, "min": 1, "settle_s": 0.2},
        schedule={"steps": 60},
        protection={"snapshots": "copy"},  # on one node there are none
    )
    alone, both = needed(job, "a")["a"], needed(job, "ab")["a"]
    assert alone < both
    world = World(job=job, nodes={"a": 1}, small_nodes={"a": both - 1})
    world.on_step[5] = lambda: world.add_node("b", 1)
    world.submit()
    world.run()

    assert world.fired == ["add b"]
    assert world.state.phase is Phase.DONE
    assert pauses(world) == []
    assert sizes(world) == [{"a": 1}]
    _, refused = decisions(world, Gather)
    assert (refused.hires, refused.limits) == ((), (("b", 0),))
    assert decisions(world, Recover) == []
    assert_sound(world)


def test_a_gang_without_room_for_its_homes_does_not_pause_for_a_small_node() -> None:
    job = small_job(workers={"settle_s": 0.2}, schedule={"steps": 60})
    world = World(job=job, memory_bytes=6700, small_nodes={"c": 1000})
    world.at_point("begun", 13, lambda _: world.lose_node("b"))
    world.on_step[20] = lambda: world.add_node("c", 1)
    world.submit()
    world.run()

    assert world.fired == ["lose b", "add c"]
    assert world.state.phase is Phase.DONE
    assert pauses(world) == []
    assert rungs(world) == ["failover"]
    assert [form.unprotected for form in decisions(world, Form)] == [False, True]
    assert [gather.hires for gather in decisions(world, Gather)][1:] == [()]
    assert world.state.tally.exposed_s > 0
    assert_sound(world)


def test_a_gang_pauses_once_to_leave_a_node_whose_memory_it_cannot_do_without() -> None:
    job = small_job(data={"seq_len": 1024}, workers={"min": 1, "settle_s": 60.0})
    all_four, two = needed(job, "aabb")["a"], needed(job, "aa")["a"]
    assert all_four < two
    world = World(job=job, memory_bytes=all_four)
    notice = NodeLeaving(0, "b", world.now_s + 900.0, "a notice")
    world.on_step[5] = lambda: (world.fired.append("notice"), world.at(0, notice))
    world.submit()
    world.run()

    assert world.fired == ["notice"]
    assert world.state.phase is Phase.DONE
    assert pauses(world) == ["leave"]
    assert sizes(world) == [{"a": 2, "b": 2}, {"a": 2, "b": 2}]
    assert set(world.state.staying) == {1, 3}
    assert world.state.tally.steps_rolled_back == 0
    assert_sound(world)


def test_when_there_is_more_room_it_pauses_again_to_leave_that_node() -> None:
    job = small_job(data={"seq_len": 1024}, workers={"min": 1, "settle_s": 60.0})
    world = World(job=job, memory_bytes=needed(job, "aabb")["a"])
    notice = NodeLeaving(0, "b", world.now_s + 900.0, "a notice")
    world.on_step[5] = lambda: (world.fired.append("notice"), world.at(0, notice))
    world.on_step[20] = lambda: world.add_node("c", 2)
    world.submit()
    world.run()

    assert world.fired == ["notice", "add c"]
    assert pauses(world) == ["leave", "leave"]
    assert sizes(world) == [{"a": 2, "b": 2}, {"a": 2, "b": 2}, {"a": 2, "c": 2}]
    assert world.state.phase is Phase.DONE
    assert world.state.tally.steps_rolled_back == 0
    assert_sound(world)


def two_of_five_lost() -> World:
    """Everybody keeps two homes of five; three nodes cannot hold all."""
    job = small_job(workers={"replicas": 5, "settle_s": 0.2}, protection={"snapshots": "off"})
    nodes = dict.fromkeys("abcde", 1)
    world = World(job=job, nodes=nodes, small_nodes=needed(job, "abcde"))
    world.at_point("begun", 13, lambda _: [world.lose_node(node) for node in "de"])
    world.submit()
    world.run(limit_s=60.0)
    assert world.fired == ["lose d", "lose e"]
    assert world.state.phase is Phase.WAITING
    return world


def test_memory_that_small_nodes_cannot_share_with_a_large_one_is_left_for_a_checkpoint() -> None:
    world = two_of_five_lost()
    assert [wait.from_memory for wait in decisions(world, Wait)] == [True]

    world.add_node("z", 8)
    world.run(limit_s=60.0)

    assert world.state.phase is Phase.DONE
    assert rungs(world) == ["failover", "checkpoint"]
    back = decisions(world, Recover)[-1]
    assert (back.step, back.redo_steps) == (10, 2)
    (why,) = (text for text in back.passed_over if text.startswith("failover: "))
    assert " would need " in why
    assert set(sizes(world)[-1]) == {"z"}
    assert world.state.tally.steps_rolled_back == 2
    assert_sound(world)


def test_where_no_layout_would_fit_either_memory_is_kept_and_waited_with() -> None:
    world = two_of_five_lost()

    world.small_nodes["z"] = 1000
    world.add_node("z", 8)
    world.run(limit_s=60.0)

    assert world.state.phase is Phase.WAITING
    assert rungs(world) == ["failover"]
    assert decisions(world, Wait)[-1].from_memory


def test_of_nodes_of_several_sizes_each_is_grown_into_as_far_as_it_has_memory() -> None:
    job = small_job(
        data={"seq_len": 1024},
        workers={"replicas": 10, "max": 10, "settle_s": 0.2},
        schedule={"steps": 60},
    )
    one, two = (needed(job, nodes)["d"] for nodes in ("aabbcdee", "aabbddee"))
    assert one < two
    world = World(job=job, small_nodes={"c": 1000, "d": one, "e": 2**30})
    world.on_step[5] = lambda: [world.add_node(node, 2) for node in "cde"]
    world.submit()
    world.run()

    assert world.fired == ["add c", "add d", "add e"]
    first, more = decisions(world, Gather)
    assert len(first.hires) == 4
    assert sorted(node for _, node in more.hires) == ["d", "e", "e"]
    assert dict(more.limits) == {"c": 0, "d": 1}
    assert pauses(world) == ["grow"]
    assert sizes(world) == [{"a": 2, "b": 2}, {"a": 2, "b": 2, "d": 1, "e": 2}]
    assert world.state.phase is Phase.DONE
    assert_sound(world)


def test_a_gang_whose_memory_cannot_be_shared_pauses_once_to_grow() -> None:
    """A layout made afresh would fit on all nodes; what is in memory cannot get there."""
    job = small_job(
        workers={"min": 2, "settle_s": 0.2},
        protection={"snapshots": "copy"},
        schedule={"steps": 60},
    )
    sizes_of = {node: int(1.1 * one) for node, one in needed(job, "abcd").items()}
    world = World(job=job, nodes=dict.fromkeys("abcd", 1), small_nodes=sizes_of)
    world.at_point("begun", 13, lambda _: [world.lose_node(node) for node in "cd"])
    world.submit()
    world.run(limit_s=30.0)
    world.add_node("z", 2)
    world.run()

    assert world.fired == ["lose c", "lose d", "add z"]
    assert world.state.phase is Phase.DONE
    assert pauses(world) == ["grow"]
    assert rungs(world) == ["failover"]
    assert sizes(world)[1:] == [{"a": 1, "b": 1, "z": 1}] * 2
    assert dict(decisions(world, Form)[-1].limits)["z"] == 1
    assert world.state.tally.steps_rolled_back == 0
    assert_sound(world)


def test_fewer_workers_of_a_node_are_tried_before_none() -> None:
    job = small_job(data={"seq_len": 1024}, protection={"redundancy": 1, "snapshots": "off"})
    three = needed(job, "aaa")["a"]
    assert three < needed(job, "aaaa")["a"]
    world = World(job=job, nodes={"a": 4, "b": 2}, small_nodes={"a": three, "b": three})
    world.at_point("begun", 13, lambda _: world.lose_node("b"))
    world.submit()
    world.run()

    assert world.fired == ["lose b"]
    assert world.state.phase is Phase.DONE
    assert decisions(world, Wait) == []
    assert sizes(world)[-1] == {"a": 3}
    assert len(world.alive) <= 3
    assert_sound(world)


def test_at_the_start_too_the_others_go_where_there_is_memory() -> None:
    job = small_job(data={"seq_len": 1024}, workers={"min": 4})
    most = needed(job, "aaab")["a"]
    assert most < needed(job, "aaaa")["a"]
    world = World(job=job, nodes={"a": 4}, memory_bytes=most)
    world.submit()
    world.run(limit_s=60.0)
    assert world.state.phase is Phase.WAITING

    world.add_node("b", 4)
    world.run()

    assert world.state.phase is Phase.DONE
    assert set(sizes(world)[-1]) == {"a", "b"}


def test_units_of_members_that_leave_get_no_home_beyond_the_memory() -> None:
    job = small_job(
        workers={"replicas": 3, "min": 1}, schedule={"steps": 60}, protection={"snapshots": "off"}
    )
    both = needed(job, "ab")["a"]
    world = World(job=job, nodes={"a": 1, "b": 1, "c": 1}, memory_bytes=both - 1)
    world.at_point("begun", 13, lambda _: world.lose_node("c"))
    world.on_step[20] = lambda: world.deliver(
        NodeLeaving(world.now_s, "b", world.now_s + 30.0, "a notice")
    )
    world.submit()
    world.run(limit_s=60.0)

    assert world.fired == ["lose c"]
    assert decisions(world, Form)[1].unprotected
    told = decisions(world, Protect)
    assert told or decisions(world, Stay)
    for decision in told:
        assert overfull_nodes(world.state, Plan.from_json(decision.plan)) == ()
    assert_sound(world)


def test_one_stranger_of_every_overfull_node_is_left_out_first() -> None:
    there = tuple(Worker(n, "a", WorkerStatus.IDLE, 0.0) for n in range(4))
    others = tuple(Worker(n, "b", WorkerStatus.IDLE, 0.0) for n in range(4, 6))
    crowded = Crowded(there + others)
    a, b = Overfull("a", 40, 20), Overfull("b", 30, 20)

    fewer = crowded.leave_out(there + others, {2, 3, 5}, (a, b))
    assert [worker.number for worker in fewer] == [0, 1, 2, 4]
    fewer = crowded.leave_out(fewer, {2}, (a,))
    assert [worker.number for worker in fewer] == [0, 1, 4]
    assert crowded.node == a
    assert (crowded.first_limits, crowded.limits) == ({"a": 3, "b": 1}, {"a": 2, "b": 1})

    fewer = crowded.leave_out(fewer, {4}, (a,))
    assert [worker.number for worker in fewer] == [0, 1]
    members = [Member(worker.number, "a", "a") for worker in fewer]
    assert crowded.limits_of(members) == {"a": 2, "b": 0}
