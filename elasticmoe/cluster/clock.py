"""The one clock of a controller's term."""

import time


class TermClock:
    """Wall-clock time at the start of the term, then as much more as has really passed.

    Somebody may set the machine's clock while a job runs: timers and outages must not notice. Never
    behind what an earlier term wrote down.
    """

    def __init__(self, not_before_s: float = 0.0) -> None:
        """
        Args:
            not_before_s: the newest time in the journal.
        """
        self._ahead_s = max(time.time(), not_before_s) - time.monotonic()

    def now_s(self) -> float:
        """Seconds since the epoch, as this term counts them."""
        return self._ahead_s + time.monotonic()
