"""Every checker passes a sound run and catches the fault that is planted for it."""

from dataclasses import replace

from journals import SAMPLES, Run, make, sound_run

from chaos.checkers import (
    check_all,
    check_answers,
    check_attempts,
    check_committed,
    check_false_alarms,
    check_outcome,
    check_rungs,
    check_samples,
    check_story,
    false_alarms,
    outages,
    read_lines,
)
from chaos.scenario import Expect
from elasticmoe.controller.decisions import GiveUp
from elasticmoe.messages.events import CheckpointSealed, WorkerDied


def test_a_sound_run_passes_all_checkers() -> None:
    run = sound_run()

    assert check_all(run.evidence, Expect(rungs=("replace",))) == ()
    (outage,) = outages(run.records)
    assert outage.redone == 1
    assert outage.rungs == ("replace",)


def test_a_sample_that_is_used_twice_is_caught() -> None:
    run = Run().form(1, 0).train(1, 1, 10).train(1, 11, 20, first_sample=9 * SAMPLES).stopped(20)

    (problem,) = check_samples(run.evidence)
    assert f"begins with sample {9 * SAMPLES}" in problem


def test_a_sample_that_is_left_out_is_caught() -> None:
    run = Run().form(1, 0).train(1, 1, 10).train(1, 11, 20, first_sample=11 * SAMPLES)

    assert check_samples(run.stopped(20).evidence) != ()


def test_a_step_that_nobody_was_told_of_and_no_generation_explains_is_caught() -> None:
    run = sound_run()
    del run.lines[4]

    assert check_committed(run.evidence) == ("generation 1: step 6 is committed next after 4",)


def test_a_step_that_was_committed_by_rule_after_the_reporter_died_is_no_gap() -> None:
    run = Run().form(1, 0).train(1, 1, 10).strike().broken(1, 11).form(2, 11).train(2, 12, 20)

    assert check_committed(run.evidence) == ()
    assert outages(run.records)[0].redone == 0


def test_a_committed_step_that_is_taken_again_is_caught_unless_it_may_be() -> None:
    run = Run().form(1, 0).train(1, 1, 10).tell(make(CheckpointSealed, step=7))
    run.strike().broken(1, 7, rung="checkpoint").form(2, 7).train(2, 8, 20).stopped(20)

    (problem,) = check_committed(run.evidence, 2)
    assert problem == "3 committed steps were lost, 2 may be: 10 back to 7"
    assert check_committed(run.evidence, 3) == ()
    assert check_attempts(run.evidence, Expect()) == (
        "4 steps were begun and not kept; 1 faults, 0 false alarms and 0 steps that may be lost "
        "explain 1",
    )
    assert check_attempts(run.evidence, Expect(steps_rolled_back=3)) == ()


def test_a_line_that_is_told_twice_around_a_restart_of_the_controller_is_no_lost_step() -> None:
    run = sound_run()
    run.lines.insert(5, run.lines[4])

    assert check_committed(run.evidence) == ()


def test_a_line_may_be_missing_where_a_controller_was_killed_and_nowhere_else() -> None:
    run = Run().form(1, 0).train(1, 1, 10).strike(answer="term").train(1, 11, 20)
    del run.lines[10]
    assert check_committed(run.evidence) == ()

    del run.lines[2]

    assert len(check_committed(run.evidence)) == 1


def test_steps_of_a_generation_that_the_journal_never_opened_are_caught() -> None:
    run = sound_run()
    run.lines = [replace(line, generation=line.generation * 3) for line in run.lines]

    assert "the journal opens none" in check_committed(run.evidence)[0]


def test_a_recovery_without_a_fault_is_a_false_alarm_and_one_after_a_fault_is_not() -> None:
    run = sound_run()
    run.at_s += 60
    run.broken(2, 20).form(3, 20).train(3, 21, 30)

    assert [alarm.generation for alarm in false_alarms(run.evidence)] == [2]
    assert len(check_false_alarms(run.evidence, 0)) == 1
    assert check_false_alarms(run.evidence, 1) == ()
    assert check_attempts(run.evidence, Expect()) == ()


def test_a_recovery_that_lost_nobody_is_a_false_alarm_also_right_after_a_kill() -> None:
    run = Run().form(1, 0).train(1, 1, 10).strike().broken(1, 10)
    run.tell(make(WorkerDied, at_s=run.at_s, node="a", worker=1, log="")).form(2, 10)
    run.train(2, 11, 15).broken(2, 15, rung="retry").form(3, 15).train(3, 16, 20).stopped(20)

    assert [outage.lost for outage in outages(run.records)] == [{1}, set()]
    assert [alarm.generation for alarm in false_alarms(run.evidence)] == [2]
    assert check_attempts(run.evidence, Expect()) == ()


def test_a_recovery_that_lost_another_worker_than_was_killed_is_a_false_alarm() -> None:
    run = Run().form(1, 0).train(1, 1, 10).strike(victims=("worker 0",)).broken(1, 10)
    run.tell(make(WorkerDied, at_s=run.at_s, node="a", worker=1, log="")).form(2, 10)
    run.train(2, 11, 20).stopped(20)

    assert [alarm.generation for alarm in false_alarms(run.evidence)] == [1]


def test_a_fault_that_is_never_answered_is_caught() -> None:
    run = Run().form(1, 0).train(1, 1, 10).strike(answered_s=None).train(1, 11, 20)

    (problem,) = check_answers(run.evidence, 5)
    assert problem == "fault 1 (kill_worker at step 10) was never answered"


def test_steps_of_the_old_generation_are_no_answer_whatever_the_striker_says() -> None:
    run = Run().form(1, 0).train(1, 1, 10).strike(answered_s=0.1).train(1, 11, 20)

    assert "never answered" in check_answers(run.evidence, 5)[0]


def test_a_late_answer_is_caught() -> None:
    run = sound_run()
    run.strikes[0].answered_s = 7.0

    assert "after 7.00 s, not 5" in check_answers(run.evidence, 5)[0]


def test_another_rung_than_expected_is_caught() -> None:
    assert check_rungs(sound_run().evidence, ("failover",)) == ("1 recoveries by replace",)


def test_another_end_than_expected_is_caught() -> None:
    run = sound_run()

    assert "not as done" in check_outcome(run.evidence, "done")[0]
    run.tell(make(GiveUp, code="crash_loop", log=""))
    assert "ended as failed" in check_outcome(run.evidence, "stopped")[0]
    assert check_outcome(Run().evidence, "done") == ("the job has not ended; it should be done",)


def test_a_story_without_the_sentence_is_caught() -> None:
    run = sound_run()

    assert check_story(run.evidence, ("checkpoint of step 10 saved",)) == ()
    assert len(check_story(run.evidence, ("flipped",))) == 1


def test_a_torn_last_line_of_the_steps_file_is_passed_over() -> None:
    line = '{"n":1,"at_s":1.0,"kind":"step","step":1,"generation":1,"loss":2.0}\n'

    assert [found.step for found in read_lines([line, line[:30]])] == [1]
