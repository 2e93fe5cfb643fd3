"""Sentences for people: numbers, lists and what happened to workers."""

from collections.abc import Sequence

from elasticmoe.controller.decisions import Casualty
from elasticmoe.messages.events import CommandFailed
from elasticmoe.messages.worker import STEPS_SKIPPED


def command_failed(event: CommandFailed) -> str | None:
    """What could not be done; none where it does not matter, or the same is told otherwise.

    >>> command_failed(CommandFailed(1.0, "StartWorkers", "no room", node="b", workers=(3, 4)))
    'workers 3 and 4 could not be started on node b: no room'
    >>> command_failed(CommandFailed(1.0, "BreakGeneration", "node b is gone"))
    """
    what = {
        "FormGeneration": f"generation {event.generation} could not be formed",
        "InstructGang": "the gang could not be told what to do",
        "SealCheckpoint": "a checkpoint could not be sealed",
        "DeleteCheckpoint": "an old checkpoint could not be deleted",
    }.get(event.command)
    if event.command == "StartWorkers":
        who = workers_named(event.workers) if event.workers else "workers"
        what = f"{who} could not be started on node {event.node}"
    return f"{what}: {event.reason}" if what else None


def plural(count: int, word: str) -> str:
    """A count and its noun.

    >>> plural(1, "step"), plural(12, "step")
    ('1 step', '12 steps')
    """
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def listed(items: Sequence[object]) -> str:
    """A list as one reads it aloud.

    >>> listed([3]), listed([3, 5]), listed([1, 2, 3])
    ('3', '3 and 5', '1, 2 and 3')
    """
    *front, last = (str(item) for item in items)
    return f"{', '.join(front)} and {last}" if front else last


def workers_named(numbers: Sequence[int]) -> str:
    """Workers by their numbers.

    >>> workers_named([3]), workers_named([3, 5]), workers_named([0, 1, 2, 3])
    ('worker 3', 'workers 3 and 5', 'workers 0 to 3')
    """
    ordered = sorted(numbers)
    if len(ordered) == 1:
        return f"worker {ordered[0]}"
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"workers {ordered[0]} to {ordered[-1]}"
    return f"workers {listed(ordered)}"


def is_cause(casualty: Casualty) -> bool:
    """Whether a sign says why a generation is over; who merely lost a peer parks without a code."""
    return casualty.kind != "parked" or bool(casualty.code)


def described(casualties: Sequence[Casualty]) -> str:
    """What happened, causes only: whoever merely lost a peer is not mentioned.

    >>> parked = Casualty("parked", 0, "a", "connection closed")
    >>> described([parked, Casualty("died", 3, "a", "killed by signal 9")])
    'worker 3 was killed (signal 9)'
    >>> described([parked, Casualty("parked", 1, "a", "unit 7 is not as it was", code="corrupted")])
    'worker 1 found corrupted memory: unit 7 is not as it was'
    """
    causes = [casualty for casualty in casualties if is_cause(casualty)]
    if not causes:
        first = casualties[0]
        return f"communication failed with everybody alive (worker {first.worker}: {first.text})"
    by_cause: dict[tuple[str, str, str, int], list[int]] = {}
    for casualty in causes:
        where = casualty.node if casualty.kind == "node_lost" else ""
        kind = STEPS_SKIPPED if casualty.code == STEPS_SKIPPED else casualty.kind
        key = (kind, casualty.text, where, casualty.step)
        by_cause.setdefault(key, []).append(casualty.worker)
    return ", and ".join(_cause(*key, workers) for key, workers in by_cause.items())


def _cause(kind: str, text: str, node: str, step: int, numbers: list[int]) -> str:
    workers = [number for number in numbers if number >= 0]
    if kind == "node_lost":
        lost = f" with {workers_named(workers)}" if workers else ""
        return f"node {node} was lost{lost} ({text})"
    if not workers or kind == STEPS_SKIPPED:
        return text
    who, were = workers_named(workers), "was" if len(workers) == 1 else "were"
    if kind == "failed":
        return f"{who} failed at step {step}: {text}"
    if kind == "died" and text.startswith("killed by signal "):
        return f"{who} {were} killed (signal {text.removeprefix('killed by signal ')})"
    if kind == "died":
        return f"{who} died ({text})"
    if kind == "parked":
        return f"{who} found corrupted memory: {text}"
    if kind == "silent":
        return f"{who} fell silent ({text}) and {were} killed"
    return f"{who} {text}"
