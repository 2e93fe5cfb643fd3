"""The journal as sentences, and the outcome in numbers."""

from fake_job import ROLLBACK, small_job
from fake_world import World

from elasticmoe.controller.record import Record
from elasticmoe.controller.story import Story, story
from elasticmoe.controller.summary import summary
from elasticmoe.messages.events import CommandFailed, NodeUp, Reported, StopAsked, TermBegan
from elasticmoe.messages.worker import CheckpointFailed


def told(world: World) -> list[str]:
    return [line.partition(" s  ")[2] for line in story(world.records)]


def test_a_run_with_a_rollback_reads_like_this() -> None:
    world = World(job=small_job(protection=ROLLBACK))
    world.on_step[15] = lambda: world.kill(3)
    world.submit()

    world.run()

    assert world.fired == ["kill 3"]
    assert told(world) == [
        "job test: 30 steps on 4 workers (2 at least)",
        "node a is up: room for 2 workers",
        "node b is up: room for 2 workers",
        "starting workers 0 to 3 on nodes a and b: there is room for the 4 workers wanted",
        "4 workers train from step 1 (workers 0 to 3)",
        "checkpoint of step 10 saved (0.0 MB)",
        "worker 3 was killed (signal 9); all went back to the checkpoint of step 10 and "
        "4 workers trained on after 0.04 s; 5 steps redone; nothing else lost",
        "checkpoint of step 20 saved (0.0 MB)",
        "checkpoint of step 30 saved (0.0 MB)",
        "all 30 steps are done; saved in checkpoints/30-2",
    ]


def test_a_run_that_survives_from_memory_reads_like_this() -> None:
    world = World(nodes={"a": 2, "b": 2}, job=small_job(checkpoint={"interval_steps": 30}))
    world.at_point("begun", 8, lambda _: world.kill(3))
    world.at_point("begun", 13, lambda _: world.cut())
    world.at_point("begun", 23, lambda _: world.lose_node("b"))
    world.submit()

    world.run()

    assert world.fired == ["kill 3", "cut", "lose b"]
    assert told(world)[5:] == [
        "worker 3 was killed (signal 9); replaced from its node's memory in 0.03 s; "
        "step 8 redone; nothing lost",
        "communication failed with everybody alive (worker 0: connection reset); 4 workers went on "
        "from memory after 0.07 s; step 13 redone; nothing lost",
        "node b was lost (agent does not answer)",
        "node b was lost with workers 1 and 4 (agent does not answer); 2 workers went on without "
        "them after 0.02 s; step 23 redone; nothing lost; 6 units have one home until protection "
        "is restored",
        "restoring protection: 6 units get another home",
        "protection restored after 0.13 s",
        "checkpoint of step 30 saved (0.0 MB)",
        "all 30 steps are done; saved in checkpoints/30-4",
    ]


def test_growing_and_stopping_give_their_reasons() -> None:
    world = World(nodes={"a": 2}, job=small_job(workers={"settle_s": 0.2}))
    world.on_step[3] = lambda: world.add_node("b", 2)
    world.on_step[23] = lambda: world.at(0, StopAsked(0, "you"))
    world.submit()

    world.run()

    assert world.fired == ["add b"]
    assert told(world)[-9:] == [
        "node b is up: room for 2 workers",
        "starting workers 2 and 3 on node b: room for 2 more stayed healthy",
        "growing: 2 new workers stayed healthy",
        "4 workers train from step 7 (workers 0 to 3)",
        "checkpoint of step 10 saved (0.0 MB)",
        "checkpoint of step 20 saved (0.0 MB)",
        "you asked to stop",
        "checkpoint of step 24 saved (0.0 MB)",
        "stopped by you at step 24; saved in checkpoints/24-2",
    ]


def test_every_line_carries_the_seconds_since_the_submission() -> None:
    world = World()
    world.submit()

    world.run()

    lines = story(world.records)
    assert lines[0].startswith("     0.00 s  job test")
    times = [float(line.split()[0]) for line in lines]
    assert times == sorted(times)
    assert times[-1] > 3.0


def test_what_could_not_be_done_is_said_plainly_or_not_at_all() -> None:
    teller = Story()
    failed = [
        CommandFailed(1.0, "BreakGeneration", "node b has no agent", 3, "b"),
        CommandFailed(1.0, "KillWorkers", "node b has no agent", 0, "b"),
        CommandFailed(2.0, "StartWorkers", "no room", 0, "b", (3, 4)),
        CommandFailed(3.0, "FormGeneration", "node b has no agent", 3, "b"),
    ]

    sentences = [teller.tell(Record(n, event)) for n, event in enumerate(failed)]

    assert [sentence.text for sentence in sentences if sentence] == [
        "workers 3 and 4 could not be started on node b: no room",
        "generation 3 could not be formed: node b has no agent",
    ]


def test_what_was_told_is_not_told_again() -> None:
    teller = Story()
    node = NodeUp(1.0, "a", "zone-1", "host", 4, 2**30)
    failed = [
        Reported(2.0, "a", CheckpointFailed(1, worker, 200, "disk full")) for worker in (0, 1)
    ]
    events = [node, node, *failed, TermBegan(3.0, 1, "v"), TermBegan(4.0, 2, "v")]

    sentences = [teller.tell(Record(n, event)) for n, event in enumerate(events)]

    assert [sentence.text for sentence in sentences if sentence] == [
        "node a in zone-1 is up: room for 4 workers",
        "the checkpoint of step 200 could not be written (worker 0: disk full); training goes on",
        "a new controller took over (term 2)",
    ]


def test_the_summary_counts_what_happened() -> None:
    world = World()
    world.on_step[15] = lambda: world.kill(3)
    world.on_step[24] = lambda: world.lose_node("b")
    world.submit()

    world.run()

    assert world.fired == ["kill 3", "lose b"]
    found = summary(world.state)
    expected = {
        "outcome": "done",
        "steps": 30,
        "generations": 3,
        "timelines": 1,
        "faults": 2,
        "recoveries": 2,
        "recoveries_by_rung": {
            "retry": 0,
            "replace": 1,
            "failover": 1,
            "snapshot": 0,
            "checkpoint": 0,
        },
        "redone_steps": 0,
        "steps_rolled_back": 0,
        "open_steps_redone": 1,
        "workers_lost": 3,
        "nodes_lost": 1,
        "newest_checkpoint": "checkpoints/30-3",
        "first_error": None,
        "ignored_events": 0,
    }
    assert {name: found[name] for name in expected} == expected
