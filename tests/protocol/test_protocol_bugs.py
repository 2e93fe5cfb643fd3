"""The search would notice: every planted mistake is found, and its trace can be read."""

import pytest
from protocol_search import Search
from protocol_vault import Bug, Case

SMALLEST = {
    Bug.SKIP_PREPARING: (Case(1, 1), 1),
    Bug.NO_VOTE: (Case(2, 1), 1),
    Bug.FORGET_BIAS: (Case(1, 1), 1),
    Bug.ASK_SURVIVORS: (Case(2, 1), 1),
    Bug.HOMES_TOGETHER: (Case(2, 2), 2),
    Bug.BARE_MIRRORS: (Case(2, 2), 2),
    Bug.ROLL_TWICE: (Case(1, 1), 1),
    Bug.TORN_IS_WHOLE: (Case(2, 2), 1),
    Bug.KEEP_PREPARED: (Case(2, 1), 2),
    Bug.MOVE_FIRST: (Case(3, 2, decide_once=False), 2),
    Bug.STALE_UNDO: (Case(2, 2), 2),
    Bug.KEEP_OLD_HOMES: (Case(2, 1, nodes=(0, 0)), 3),
    Bug.KEEP_THE_DEAD: (Case(2, 2), 2),
    Bug.REWRITE_PROGRESS: (Case(1, 1), 2),
    Bug.TORN_BY_SKIP: (Case(1, 1, skipped=frozenset({1})), 1),
    Bug.NONE_IS_ZERO: (Case(2, 1), 2),
    Bug.NO_PUBLISH: (Case(1, 1), 2),
}
"""The gang and the number of faults that bring each mistake to light."""


@pytest.mark.parametrize("bug", Bug, ids=lambda bug: bug.name.lower())
def test_planted_bug_is_caught(bug: Bug) -> None:
    case, max_faults = SMALLEST[bug]

    found = Search(case._replace(bugs=frozenset({bug})), max_faults).run()

    print(f"{bug.value}:\n{found.violation}")  # noqa: T201  # for whoever reads with -s
    assert "=> " in found.violation
    assert "fault(s)" in found.violation, "the trace says what happened first"
    assert Search(case, max_faults).run().violation == "", "it is the bug that is caught"


def test_trace_is_as_short_as_can_be() -> None:
    case = Case(2, 2, bugs=frozenset({Bug.TORN_IS_WHOLE}))

    trace = Search(case, max_faults=2).run().violation

    assert trace.splitlines() == [
        "2 worker(s) train from the seed",
        "1 fault(s)",
        "  worker 0 killed after: tear unit 0",
        "  worker 1 parked after: enter vote",
        "decided: go on from step 1 (step 1 had begun to be applied) with workers [0, 1], moves []",
        "=> unit 0 of worker 0 had the gradients ((-1, -1), (1, 1)), not of steps [1]",
    ]
