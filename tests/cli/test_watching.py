import os
import signal
from collections.abc import Iterator
from pathlib import Path

from event_server import end_line, step_line

from elasticmoe.cli.display import PlainView
from elasticmoe.cli.progress import Progress
from elasticmoe.cli.watching import interrupts_deferred, watch_job
from elasticmoe.client import JobClient, JobEvent


class PressingClient(JobClient):
    """Events with Ctrl-C among them; the job goes on until it is asked to stop."""

    def __init__(self, presses: int) -> None:
        super().__init__("http://127.0.0.1:9")
        self.presses, self.stops, self.after = presses, 0, []

    def stop(self) -> None:
        self.stops += 1

    def events(self, after: int = 0) -> Iterator[JobEvent]:
        import json

        self.after.append(after)
        yield JobEvent.from_line(json.dumps(step_line(after + 1, after + 1)).encode())
        if self.presses:
            self.presses -= 1
            raise KeyboardInterrupt
        yield JobEvent.from_line(json.dumps(end_line(after + 2, "stopped")).encode())


def _view() -> PlainView:
    return PlainView(Progress("job", 10, 100), local=False)


def test_ctrl_c_asks_the_job_to_stop_and_waits_for_its_end() -> None:
    client = PressingClient(presses=1)

    outcome = watch_job(client, Path("nowhere"), _view())

    assert outcome == {"outcome": "stopped"}
    assert client.stops == 1
    assert client.after == [0, 1]


def test_ctrl_c_twice_leaves_the_job_to_itself() -> None:
    client = PressingClient(presses=2)

    outcome = watch_job(client, Path("nowhere"), _view())

    assert outcome is None
    assert client.stops == 1


def test_ctrl_c_while_the_job_was_starting_stops_it_once_it_runs() -> None:
    client = PressingClient(presses=0)

    with interrupts_deferred() as pressed:
        os.kill(os.getpid(), signal.SIGINT)
    outcome = watch_job(client, Path("nowhere"), _view(), interrupted=pressed())

    assert client.stops == 1
    assert outcome == {"outcome": "stopped"}
