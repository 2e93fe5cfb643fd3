"""Every recovery is one trace, read from the journal alone."""

import json

from fake_world import World
from survival import done

from elasticmoe.controller.flight import describe_flight, find_flights, trace_events


def killed(point: str = "prepared") -> World:
    world = World()
    world.at_point(point, 13, world.kill, 1)
    done(world)
    assert len(world.fired) == 1
    return world


def test_a_flight_holds_evidence_inventory_decisions_and_time_per_phase() -> None:
    (flight,) = find_flights(killed().records)

    assert (flight.number, flight.rung, flight.step) == (1, "replace", 12)
    assert any("killed by signal 9" in text for text in flight.evidence)
    assert sum("parked" in text for text in flight.evidence) >= 3
    assert set(flight.copies) >= {0, 1, 2, 3}
    assert flight.last_done == {  # worker 2 died before the vote, with two who had not prepared
        0: "vote, collective 13",
        1: "apply, collective 12",
        2: "vote, collective 13",
        3: "apply, collective 12",
    }
    kinds = [kind for _, kind, _ in flight.decisions]
    assert kinds[0] == "Break"
    assert kinds[-1] == "Train"
    assert {"Gather", "Recover", "Form"} <= set(kinds)
    names = {span.name for span in flight.spans}
    assert {"park", "start", "account for everybody", "form", "first step"} <= names
    assert all(flight.began_s <= span.start_s <= span.end_s for span in flight.spans)
    assert flight.began_s < flight.ended_s


def test_a_job_without_faults_has_no_flights() -> None:
    assert find_flights(done(World()).records) == []


def test_a_fault_during_recovery_belongs_to_the_same_flight() -> None:
    world = World()
    world.submit()
    world.at_point("prepared", 13, world.kill, 1)
    world.run(lambda: bool(world.fired) and world.state.phase.value == "breaking")
    world.kill(world.state.members[0])
    world.run()

    flights = find_flights(world.records)

    assert len(flights) == 1
    assert sum("died" in text for text in flights[0].evidence) == 2


def test_a_recovery_that_is_under_way_is_told_too() -> None:
    world = World()
    world.submit()
    world.at_point("prepared", 13, world.kill, 1)
    world.run(lambda: bool(world.fired) and world.state.phase.value == "breaking")

    (flight,) = find_flights(world.records)

    assert flight.ended_s == 0.0
    assert "not over" in describe_flight(flight)[0]


def test_a_stall_and_an_error_of_a_workers_own_are_evidence_too() -> None:
    world = World()
    world.at_point("begun", 13, lambda _: world.hang(2))
    world.at_point("begun", 20, lambda _: world.fail(1, "error_1", 20))
    world.submit()
    world.run()

    stalled, failed = find_flights(world.records)
    assert len(world.fired) == 2
    assert any("no step for" in text for text in stalled.evidence)
    assert any("worker 1 failed at step 20" in text for text in failed.evidence)


def test_a_flight_becomes_trace_events_and_lines() -> None:
    (flight,) = find_flights(killed().records)

    trace = json.loads(json.dumps(trace_events(flight)))
    lines = describe_flight(flight)

    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(slices) == len(flight.spans)
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in slices)
    named = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert {named[event["tid"]] for event in slices} == {span.lane for span in flight.spans}
    assert trace["otherData"]["rung"] == "replace"
    assert trace["otherData"]["last_done"]["worker 2"] == "vote, collective 13"
    assert any("Recover:" in line for line in lines)
    held = "3 units at step 12, prepared for 13"
    assert f"  worker 2: vote, collective 13; holds {held}" in lines
