"""Numbers of a benchmark: a table for people, then one line of JSON."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from scipy.stats import t as student_t


@dataclass(slots=True)
class Report:
    """Collects what a benchmark found."""

    figures: dict[str, float] = field(default_factory=dict)
    _rows: list[tuple[str, str]] = field(default_factory=list)

    def section(self, title: str) -> None:
        """Begin a part of the table."""
        self._rows.append((f"-- {title}", ""))

    def times(self, name: str, seconds: Sequence[float]) -> None:
        """A row of times in milliseconds: median (smallest-largest, how many)."""
        low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
        spread = f"({1e3 * low:.2f}-{1e3 * high:.2f}, n={len(seconds)})"
        self._rows.append((name, f"{1e3 * middle:10.2f} ms  {spread}"))

    def note(self, name: str, text: str) -> None:
        """A row of text."""
        self._rows.append((name, text))

    def figure(
        self, name: str, value: float, *, least: float | None = None, most: float | None = None
    ) -> None:
        """A figure of the last line; `least` and `most` are the bar it is held to."""
        self.figures[name] = round(value, 5)
        bar, met = "", True
        if least is not None:
            bar, met = f"  bar >= {least}", value >= least
        if most is not None:
            bar, met = f"  bar <= {most}", value <= most
        verdict = "" if not bar else "  met" if met else "  MISSED"
        self._rows.append((f"=> {name}", f"{value:10.4f}{bar}{verdict}"))

    def print(self) -> None:
        """Print the table and, last, the line."""
        width = max((len(name) for name, _ in self._rows), default=0)
        for name, text in self._rows:
            print(f"{name:<{width}}  {text}".rstrip())
        print(json.dumps(self.figures))


def upper_95(samples: Sequence[float]) -> float:
    """Upper end of the two-sided 95 % confidence interval of the mean (Student's t).

    >>> round(upper_95([1.0, 2.0, 3.0]), 3)
    4.484
    """
    if len(samples) < 2:
        return math.inf
    error = statistics.stdev(samples) / math.sqrt(len(samples))
    return statistics.fmean(samples) + float(student_t.ppf(0.975, len(samples) - 1)) * error
