"""A job as its growing files tell it."""

import json
from itertools import count
from pathlib import Path

from journals import make

from chaos.live import LiveJob, Tail
from elasticmoe.cluster.journal_file import FileJournal
from elasticmoe.controller.decisions import Break, Form, Protect, Recover, Train
from elasticmoe.controller.record import Decided, Progress, Record
from elasticmoe.messages.events import Reported, WorkerDied
from elasticmoe.messages.worker import WorkerReady

PLAN = {
    "members": [
        {"worker": 4, "node": "a", "domain": "a"},
        {"worker": 7, "node": "b", "domain": "b"},
    ],
    "stages": [{"members": [1]}, {"members": [0]}],
    "homes": [[0, 1], [1], [0]],
}


def progress(*, generation: int, step: int, instructed: int) -> Progress:
    found: Progress = make(
        Progress, generation=generation, first_step=step, last_step=step,
        first_sample=8 * (step - 1), end_sample=8 * step, instructed=instructed,
    )  # fmt: skip
    return found


def write_step(job_dir: Path, step: int, generation: int) -> None:
    line = {"kind": "step", "step": step, "generation": generation, "loss": 1.0, "at_s": 1.0}
    with (job_dir / "steps.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def test_a_tail_returns_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tail = Tail(path)
    assert tail.lines() == []

    path.write_bytes(b"one\ntw")
    assert tail.lines() == [b"one\n"]
    path.write_bytes(b"one\ntwo\n")
    assert tail.lines() == [b"two\n"]
    assert tail.lines() == []


def test_members_stages_and_phases_follow_the_journal(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal", "run")
    live = LiveJob(tmp_path)
    bodies = [
        Reported(1.0, "a", WorkerReady(4, 40)),
        Reported(1.0, "b", WorkerReady(7, 70)),
        Decided(1, make(Form, generation=1, step=0, workers=(4, 7), plan=PLAN)),
        Decided(1, make(Train, generation=1)),
    ]
    for number, body in enumerate(bodies):
        journal.append(Record(number, body))
    write_step(tmp_path, 1, 1)

    live.poll()

    assert [worker.pid for worker in live.members] == [40, 70]
    assert [live.stage_of(4), live.stage_of(7), live.stage_of(9)] == [1, 0, None]
    assert live.only_homes("a") == 1
    assert (live.phase, live.committed, live.lines) == ("training", 1, 1)


def test_homes_of_a_generation_that_forms_count_only_once_it_trains(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal", "run")
    live = LiveJob(tmp_path)
    alone = {**PLAN, "members": PLAN["members"][:1], "homes": [[0], [0], [0]]}
    grown = {**PLAN, "homes": [[0, 1], [1, 0], [0, 1]]}
    bodies = [
        Reported(1.0, "a", WorkerReady(4, 40)),
        Decided(1, make(Form, generation=1, step=0, workers=(4,), plan=alone)),
        Decided(1, make(Train, generation=1)),
        Reported(2.0, "b", WorkerReady(7, 70)),
        Decided(2, make(Form, generation=2, step=9, workers=(4, 7), plan=grown)),
    ]
    for number, body in enumerate(bodies):
        journal.append(Record(number, body))
    live.poll()
    assert [live.only_homes("a"), live.only_homes("b")] == [3, 0]

    journal.append(Record(5, Decided(2, make(Train, generation=2))))
    live.poll()
    assert [live.only_homes("a"), live.only_homes("b")] == [0, 0]

    journal.append(Record(6, make(WorkerDied, node="b", worker=7, evidence="killed", log="")))
    live.poll()
    assert [live.only_homes("a"), live.only_homes("b")] == [3, 0]


def test_homes_that_a_gang_gets_while_it_trains_count_once_a_step_shows_them(
    tmp_path: Path,
) -> None:
    journal = FileJournal(tmp_path / "journal", "run")
    live = LiveJob(tmp_path)
    alone = {**PLAN, "homes": [[0], [1], [0]]}
    apart = {**PLAN, "homes": [[0, 1], [1, 0], [0, 1]]}

    def tell(*bodies: object) -> list[int]:
        for body in bodies:
            journal.append(Record(tell_count(), body))  # type: ignore[arg-type]
        live.poll()
        return [live.only_homes("a"), live.only_homes("b")]

    tell_count = count().__next__

    started = tell(
        Reported(1.0, "a", WorkerReady(4, 40)),
        Reported(1.0, "b", WorkerReady(7, 70)),
        Decided(1, make(Form, generation=2, step=0, workers=(4, 7), plan=alone)),
        Decided(1, make(Train, generation=2)),
    )
    asked = tell(Decided(1, make(Protect, generation=2, number=3, plan=apart, units=3)))
    other = tell(progress(generation=2, step=1, instructed=2))
    done = tell(progress(generation=2, step=2, instructed=3))

    assert started == asked == other == [2, 1]
    assert done == [0, 0]


def test_homes_that_a_generation_did_not_get_before_its_end_do_not_count(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal", "run")
    live = LiveJob(tmp_path)
    alone = {**PLAN, "homes": [[0], [1], [0]]}
    apart = {**PLAN, "homes": [[0, 1], [1, 0], [0, 1]]}
    bodies = [
        Reported(1.0, "a", WorkerReady(4, 40)),
        Reported(1.0, "b", WorkerReady(7, 70)),
        Decided(1, make(Form, generation=2, step=0, workers=(4, 7), plan=alone)),
        Decided(1, make(Train, generation=2)),
        Decided(1, make(Protect, generation=2, number=3, plan=apart, units=3)),
        Decided(1, make(Form, generation=3, step=0, workers=(4, 7), plan=alone)),
        progress(generation=2, step=1, instructed=3),
        Decided(1, make(Train, generation=3)),
        progress(generation=3, step=1, instructed=3),
    ]
    for number, body in enumerate(bodies):
        journal.append(Record(number, body))

    live.poll()

    assert [live.only_homes("a"), live.only_homes("b")] == [2, 1]


def test_a_recovery_that_is_over_before_anybody_looks_has_been_entered_all_the_same(
    tmp_path: Path,
) -> None:
    journal = FileJournal(tmp_path / "journal", "run")
    live = LiveJob(tmp_path)
    bodies = [
        Reported(1.0, "a", WorkerReady(4, 40)),
        make(WorkerDied, node="a", worker=4, evidence="killed", log=""),
        Decided(1, make(Break, generation=1)),
        Decided(1, make(Recover, rung="replace", step=3)),
        Decided(1, make(Form, generation=2, step=3, plan=PLAN)),
        Decided(1, make(Train, generation=2)),
    ]
    for number, body in enumerate(bodies):
        journal.append(Record(number, body))

    live.poll()

    assert live.phase == "training"
    assert dict(live.entered) == {"breaking": 1, "gathering": 1, "forming": 1, "training": 1}
    assert live.members == ()
    assert live.rungs == ["replace"]


def test_the_next_term_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    first = FileJournal(tmp_path / "journal", "run")
    first.append(Record(0, Reported(1.0, "a", WorkerReady(4, 40))))
    live = LiveJob(tmp_path)
    live.poll()
    second = FileJournal(tmp_path / "journal", "run")
    second.append(Record(1, Reported(2.0, "a", WorkerReady(5, 50))))

    live.poll()

    assert sorted(live.workers) == [4, 5]
