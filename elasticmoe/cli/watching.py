"""Follow a job from a terminal; Ctrl-C asks it to stop, once more leaves it alone."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from elasticmoe.cli.display import View
from elasticmoe.client import OUTCOME_FILE, JobClient
from elasticmoe.errors import ClusterError

STOPPING = (
    "stopping: a checkpoint is written first. Ctrl-C once more leaves the job to itself; "
    "it ends all the same."
)


def watch_job(
    client: JobClient, job_dir: Path, view: View, *, interrupted: bool = False
) -> dict[str, Any] | None:
    """Show a job until it ends.

    Args:
        interrupted: Ctrl-C was pressed before there was anything to show.

    Returns:
        The job's outcome; none: the watcher left before.

    Raises:
        ClusterError: the controller is out of reach, and has left no outcome.
    """
    from elasticmoe.api import follow

    asked = False
    with view:
        while True:
            try:
                if interrupted and not asked:
                    asked = True
                    view.say(STOPPING)
                    ask_to_stop(client, job_dir)
                return follow(client, job_dir, view.take, after=view.progress.newest)
            except KeyboardInterrupt:
                if asked:
                    return None
                interrupted = True


def how_to_return(job_dir: Path) -> str:
    """What to tell someone who leaves a running job."""
    return (
        f"left; the job goes on by itself. To watch it again: elasticmoe attach {job_dir}   "
        f"To end it: elasticmoe stop {job_dir}"
    )


@contextmanager
def interrupts_deferred() -> Iterator[Callable[[], bool]]:
    """Let a short piece of work end before Ctrl-C takes effect; a second one breaks it off.

    Yields:
        Tells whether Ctrl-C was pressed.
    """
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def ask_to_stop(client: JobClient, job_dir: Path) -> None:
    """Ask a job to write a checkpoint and end; it may have ended by itself meanwhile.

    Raises:
        ClusterError: it goes on, and could not be asked.
    """
    try:
        client.stop()
    except ClusterError:
        if not (job_dir / OUTCOME_FILE).exists():
            raise
