"""SIGTERM as a notice: whoever sends it to a worker alone (a batch system, an impatient hand) will
send SIGKILL some time later. Until then the worker trains on, so that somebody can take its place
between two steps; it has nothing to save that its peers and its node's memory do not hold."""

import signal
import threading
from queue import SimpleQueue
from types import FrameType

from elasticmoe.messages.worker import NOTICE_S, WorkerLeaving
from elasticmoe.runtime.mailbox import Mailbox


def heed_sigterm(mailbox: Mailbox, worker: int) -> None:
    """From now on SIGTERM is reported and does nothing else. Call it on the main thread.

    The handler runs in the middle of whatever that thread does, which may be holding the lock that
    a report needs; so another thread sends it.
    """
    notices: SimpleQueue[int] = SimpleQueue()

    def note(number: int, frame: FrameType | None) -> None:
        notices.put(number)  # reentrant, by its documentation

    def tell() -> None:
        notices.get()
        mailbox.send(WorkerLeaving(worker, NOTICE_S, "SIGTERM"))

    threading.Thread(target=tell, daemon=True, name="notice").start()
    signal.signal(signal.SIGTERM, note)
