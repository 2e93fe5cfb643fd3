"""The end of a thread of another process."""

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from elasticmoe.vault.pulse import Pulse, create_pulse


def start(act: Callable[[Pulse], None]) -> tuple[Pulse, int]:
    """A process that has mapped a pulse, and acts."""
    fd = create_pulse("test")
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act(Pulse(fd))
            os.write(tell, b"x")
            signal.pause()
        finally:
            os._exit(0)
    os.read(ready, 1)
    return Pulse(fd), pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_end_of_whoever_holds_it_is_told() -> None:
    pulse, pid = start(lambda pulse: pulse.lifeline.hold())
    told: list[bool] = []
    waiting = threading.Thread(target=lambda: told.append(pulse.lifeline.wait_for_end()))
    waiting.start()
    time.sleep(0.05)
    assert told == []  # it lives

    os.kill(pid, signal.SIGKILL)
    waiting.join(10)

    assert told == [True]  # nobody has waited for the process: it is not reaped yet
    os.waitpid(pid, 0)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGCONT])
def test_a_stopped_process_has_not_ended(number: int) -> None:
    pulse, pid = start(lambda pulse: pulse.lifeline.hold())
    os.kill(pid, number)
    told = threading.Event()

    def wait() -> None:
        pulse.lifeline.wait_for_end()
        told.set()

    threading.Thread(target=wait, daemon=True).start()

    assert not told.wait(0.2)
    end(pid)
    assert told.wait(10)


def test_a_line_that_nobody_holds_says_so_at_once() -> None:
    pulse, pid = start(lambda pulse: None)

    assert not pulse.lifeline.wait_for_end()

    end(pid)
