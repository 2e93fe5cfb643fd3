"""One fault at a time: the brain answers it, and the pretend world behaves like the real one."""

import pytest
from worlds import decisions, kinds, run

from elasticmoe.controller.decisions import Form, Wait
from elasticmoe.controller.phases import Phase
from elasticmoe.simulator.faults import Fault
from elasticmoe.simulator.jobs import small_job
from elasticmoe.simulator.run import Machine


def test_without_faults_a_job_takes_its_steps_in_the_time_they_need() -> None:
    outcome = run()

    assert outcome.state.phase is Phase.DONE
    assert outcome.problems == ()
    assert outcome.account.steps == outcome.account.attempts == 40
    assert outcome.account.goodput > 0.95
    assert outcome.account.outages == 0


def test_equal_seeds_give_equal_runs_and_others_differ() -> None:
    fault = Fault("crash", 3.0, pick=0.3)

    first, again, other = run(fault, seed=5), run(fault, seed=5), run(fault, seed=6)

    assert first.records == again.records
    assert first.records != other.records


@pytest.mark.parametrize("kind", ["crash", "hang", "stall", "fail", "cut"])
def test_a_fault_of_one_worker_costs_no_committed_step(kind: str) -> None:
    outcome = run(Fault(kind, 4.0, pick=0.6))  # type: ignore[arg-type]

    assert kinds(outcome) == [kind]
    assert outcome.state.phase is Phase.DONE
    assert outcome.problems == ()
    assert outcome.account.rolled_back == 0
    assert outcome.account.outages == 1


@pytest.mark.parametrize("kind", ["lose_node", "vanish_node", "agent", "lose_domain"])
def test_a_lost_node_costs_no_committed_step_while_the_other_has_a_home_of_all(kind: str) -> None:
    outcome = run(Fault(kind, 4.0, pick=0.6))  # type: ignore[arg-type]

    assert kinds(outcome) == [kind]
    assert outcome.state.phase is Phase.DONE
    assert outcome.problems == ()
    assert outcome.account.rolled_back == 0


def test_an_agent_that_is_cut_off_briefly_costs_nothing_at_all() -> None:
    outcome = run(Fault("partition", 4.0, pick=0.6, lasts_s=1.0))

    assert kinds(outcome) == ["partition"]
    assert outcome.problems == ()
    assert outcome.account.outages == 0


def test_a_node_that_is_cut_off_for_long_is_given_up_and_comes_back() -> None:
    outcome = run(
        Fault("partition", 1.0, pick=0.6, lasts_s=8.0), job=small_job(schedule={"steps": 120})
    )

    sizes = [len(form.workers) for form in decisions(outcome, Form)]  # type: ignore[attr-defined]
    assert kinds(outcome) == ["partition"]
    assert outcome.problems == ()
    assert sizes == [4, 2, 4]
    assert outcome.account.rolled_back == 0


def test_a_job_waits_for_nodes_and_goes_on_when_they_come() -> None:
    job = small_job(workers={"replicas": 4, "min": 4, "max": 8})

    outcome = run(
        Fault("lose_node", 3.0, node="b"), Fault("node_up", 9.0, node="c", capacity=2), job=job
    )

    assert kinds(outcome) == ["lose_node", "node_up"]
    assert len(decisions(outcome, Wait)) == 1
    assert outcome.state.phase is Phase.DONE
    assert outcome.problems == ()


def test_a_slow_node_slows_the_gang_and_is_no_fault() -> None:
    fast, slow = run(), run(Fault("slow", 2.0, pick=0.2, share=0.0, lasts_s=1.0))

    assert kinds(slow) == ["slow"]
    assert slow.problems == ()
    assert slow.account.outages == 0
    assert slow.state.now_s > fast.state.now_s + 0.4


@pytest.mark.parametrize("phase", ["compute", "prepare", "vote", "apply", "publish"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("redundancy", [1, 2])
def test_a_crash_at_any_moment_of_a_step_keeps_every_committed_step(
    phase: str, share: float, redundancy: int
) -> None:
    job = small_job(protection={"redundancy": redundancy})

    outcome = run(Fault("crash", 3.0, pick=0.4, phase=phase, share=share), job=job)

    assert kinds(outcome) == ["crash"]
    assert outcome.state.phase is Phase.DONE
    assert outcome.problems == ()
    assert outcome.account.rolled_back == 0


@pytest.mark.parametrize("decision", ["Break", "Recover", "Form", "Train"])
def test_a_second_crash_during_recovery_costs_no_committed_step(decision: str) -> None:
    second = Fault("crash", 3.0, pick=0.1, after=decision, delay_s=0.004)

    outcome = run(second, Fault("crash", 3.5, pick=0.7))

    assert kinds(outcome) == ["crash", "crash"]
    assert outcome.state.phase is Phase.DONE
    assert outcome.problems == ()
    assert outcome.account.rolled_back == 0


def test_all_homes_of_some_units_lost_together_go_back_to_the_checkpoint() -> None:
    job = small_job(protection={"redundancy": 1})

    outcome = run(Fault("lose_node", 4.0, node="b"), job=job)

    assert kinds(outcome) == ["lose_node"]
    assert outcome.problems == ()
    assert outcome.account.rungs == {"checkpoint": 1}
    assert 0 < outcome.account.rolled_back < 10


def test_a_large_gang_on_many_nodes_survives_a_lost_domain() -> None:
    machines = tuple(Machine(f"n{n}", f"d{n % 4}", 8) for n in range(16))
    job = small_job(workers={"replicas": 128, "min": 32, "max": 256})

    outcome = run(Fault("lose_domain", 4.0, node="n5"), job=job, machines=machines)

    assert kinds(outcome) == ["lose_domain"]
    assert outcome.problems == ()
    assert outcome.account.rolled_back == 0
