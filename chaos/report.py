"""What a run of faults showed: for people as Markdown, for machines as JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from chaos.checkers import Evidence, false_alarms, outages
from chaos.conductor import Strike
from chaos.scenario import Scenario


@dataclass(frozen=True)
class Report:
    """One scenario, run once."""

    scenario: Scenario
    again: str
    """The command that repeats it."""
    job_dir: str
    strikes: tuple[Strike, ...]
    skipped: dict[str, int]
    problems: tuple[str, ...]
    """What is wrong with the job, or with the run itself; empty: all is well."""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_plain(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "scenario": self.scenario.name,
            "seed": self.scenario.seed,
            "clean": self.is_clean,
            "problems": list(self.problems),
            "again": self.again,
            "job_dir": self.job_dir,
            "figures": self.figures,
            "skipped": self.skipped,
            "strikes": [asdict(strike) for strike in self.strikes],
        }

    def to_markdown(self) -> str:
        """A page."""
        verdict = "clean" if self.is_clean else f"{len(self.problems)} problems"
        lines = [f"# {self.scenario.name}: {verdict}", ""]
        if self.scenario.about:
            lines += [self.scenario.about, ""]
        lines += [f"- {problem}" for problem in self.problems]
        lines += ["", f"Again: `{self.again}`", f"Job: `{self.job_dir}`", ""]
        lines += ["| figure | |", "|---|---|"]
        lines += [f"| {name} | {_show(value)} |" for name, value in self.figures.items()]
        lines += ["", *self._by_nemesis(), "", *self._by_strike(), ""]
        return "\n".join(lines)

    def write(self, directory: Path) -> None:
        """`report.md` and `report.json`."""
        (directory / "report.md").write_text(self.to_markdown())
        (directory / "report.json").write_text(json.dumps(self.to_plain(), indent=2) + "\n")

    def _by_nemesis(self) -> list[str]:
        lines = ["| nemesis | faults | answered after, median | at most |", "|---|---|---|---|"]
        for name, count in sorted(Counter(strike.nemesis for strike in self.strikes).items()):
            times = [
                strike.answered_s
                for strike in self.strikes
                if strike.nemesis == name and strike.answered_s is not None
            ]
            middle = f"{median(times):.2f} s" if times else "never"
            worst = f"{max(times):.2f} s" if times else "never"
            lines.append(f"| {name} | {count} | {middle} | {worst} |")
        return lines

    def _by_strike(self) -> list[str]:
        lines = [
            "| # | step | phase | fault | struck | evidence | answered | undone |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for strike in self.strikes:
            answered = "never" if strike.answered_s is None else f"{strike.answered_s:.2f} s"
            lines.append(
                f"| {strike.number} | {strike.step} | {strike.phase} | {strike.nemesis} "
                f"| {', '.join(strike.victims)} | {strike.evidence} | {answered} "
                f"| {strike.undone} |"
            )
        return lines


def figures_of(evidence: Evidence, worst_difference: float | None) -> dict[str, Any]:
    """The run in numbers."""
    found = outages(evidence.records)
    answers = sorted(
        strike.answered_s for strike in evidence.strikes if strike.answered_s is not None
    )
    figures: dict[str, Any] = {
        "faults": len(evidence.strikes),
        "steps": max((line.step for line in evidence.lines), default=0),
        "recoveries": len(found),
        "rungs": dict(Counter(rung for outage in found for rung in outage.rungs)),
        "redone_steps": sum(outage.redone for outage in found),
        "false_alarms": len(false_alarms(evidence)),
        "answer_median_s": median(answers) if answers else None,
        "answer_p95_s": _quantile(answers, 0.95),
        "answer_max_s": answers[-1] if answers else None,
    }
    if worst_difference is not None:
        figures["largest_relative_difference"] = worst_difference
    return figures


def _quantile(values: Sequence[float], share: float) -> float | None:
    if not values:
        return None
    return values[min(int(share * len(values)), len(values) - 1)]


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
    return str(value)
