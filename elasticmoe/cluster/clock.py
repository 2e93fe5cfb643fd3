"""The one clock of a controller's term, and when a term may begin."""

import time
from collections.abc import Iterable
from typing import Final

from elasticmoe.controller.record import Record
from elasticmoe.controller.recovery import backoff_s
from elasticmoe.messages.events import TermBegan

QUICK_TERMS: Final = 10
"""So many controllers in a row may follow each other at once; a person may kill that many."""
QUICK_S: Final = 600.0
"""Within this time."""


def rest_before_term(records: Iterable[Record], now_s: float, longest_s: float) -> float:
    """How long a controller waits before it takes over; workers train on meanwhile.

    Nothing, unless many terms began lately: then what ends them may be in the journal or in the
    code, and each further one waits twice as long.

    Args:
        records: of all terms so far.
        longest_s: the most that may be waited: agents must not lose their patience.
    """
    began = [one.body.at_s for one in records if isinstance(one.body, TermBegan)]
    lately = sum(now_s - at_s < QUICK_S for at_s in began)
    return min(backoff_s(max(lately - QUICK_TERMS, 0), 1.0), longest_s)


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
