import doctest
import importlib
import io

import pytest
from event_server import line, step_line
from rich.console import Console

from elasticmoe.cli.display import PlainView, invitation, render
from elasticmoe.cli.progress import Progress
from elasticmoe.cli.saying import printable
from elasticmoe.client import JobEvent

WORKERS = [{"worker": 0, "pid": 41, "node": "a"}, {"worker": 3, "pid": 4711, "node": "a"}]


def _event(plain: dict[str, object]) -> JobEvent:
    import json

    return JobEvent.from_line(json.dumps(plain).encode())


def _training() -> Progress:
    progress = Progress("quickstart", total_steps=10, step_tokens=1_000)
    progress.take(_event(line(1, "workers", workers=WORKERS)))
    for number in (2, 3, 4):
        progress.take(_event(step_line(number, number - 1, loss=2.5)))
    return progress


def test_the_panel_shows_step_loss_speed_eta_load_and_a_pid() -> None:
    out = Console(file=io.StringIO(), width=110, force_terminal=False)

    out.print(render(_training(), local=True))

    text = out.file.getvalue()
    for shown in (
        "quickstart",
        "step 3/10",
        "loss 2.500",
        "1,000 tokens/s",
        "ETA 7.0 s",
        "2 workers",
        "layer.1",
        "▆▄▆▁",
        "MaxVio 0.50",
        "1 idle",
        "kill -9 4711",
    ):
        assert shown in text


def test_nobody_is_invited_to_kill_a_worker_of_another_machine() -> None:
    assert invitation(_training(), local=False) is None


def test_nobody_is_invited_to_kill_a_worker_of_a_job_that_ended() -> None:
    progress = _training()

    progress.take(_event(line(5, "end", outcome="done")))

    assert invitation(progress, local=True) is None


def test_plain_lines_tell_steps_story_and_one_invitation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = PlainView(Progress("quickstart", 10, 1_000), local=True)

    view.take(_event(line(1, "workers", workers=WORKERS)))
    view.take(_event(step_line(2, 1)))
    view.take(_event(step_line(3, 2)))
    view.take(_event(line(4, "story", text="worker 3 was killed (signal 9)")))

    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "           step 1/10, loss 2.0000, MaxVio 0.50",
        "Try it, in another terminal: kill -9 4711   (worker 3)",
        "    3.0 s  worker 3 was killed (signal 9)",
    ]


def test_a_generated_escape_sequence_does_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2J\x07\n\tb") == "a\ufffd[2J\ufffd\n\tb"


@pytest.mark.parametrize("name", ["display", "saying"])
def test_the_examples_in_the_docstrings_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"elasticmoe.cli.{name}"))

    assert result.attempted > 0
    assert result.failed == 0
