"""The last thing a run shows: what came out of it, and what can be done with it."""

from typing import TYPE_CHECKING

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from elasticmoe.cli.saying import console, format_duration, printable, say

if TYPE_CHECKING:
    from elasticmoe.report.summary import Summary


def show_summary(summary: "Summary") -> None:
    """Print the summary of a job that ended."""
    out = console()
    if summary.sample:
        out.print(Panel(Text(printable(summary.sample)), title="a sample", title_align="left"))
    table = Table.grid(padding=(0, 2))
    for name, value in summary_rows(summary):
        table.add_row(Text(name, style="cyan"), Text(value, overflow="fold"))
    title = Text(f"{summary.name}: {summary.outcome}")
    out.print(Panel(table, title=title, title_align="left", border_style="green"))
    if summary.checkpoint:
        say(
            f"next: elasticmoe generate {summary.directory} --prompt 'def '   "
            f"elasticmoe export {summary.directory} OUT   elasticmoe story {summary.directory}"
        )


def summary_rows(summary: "Summary") -> list[tuple[str, str]]:
    """Names and values, as a person reads them."""
    rows = [("outcome", summary.reason)]
    loss = f", loss {summary.loss:.4f} nats per token" if summary.loss is not None else ""
    rows.append(("steps", f"{summary.steps} committed{loss}"))
    if summary.bits_per_byte is not None:
        beside = ""
        if summary.order2_bits_per_byte is not None:
            beside = f"; an order-2 byte model has {summary.order2_bits_per_byte:.3f}"
        rows.append(
            (
                "held-out text",
                f"{summary.bits_per_byte:.3f} bits per byte over {summary.heldout_tokens:,} "
                f"tokens{beside}",
            )
        )
    rows += [
        (
            "speed",
            f"{summary.tokens_per_s:,.0f} tokens/s over {format_duration(summary.wall_s)}, "
            "start and faults included",
        ),
        ("faults", _faults(summary)),
        ("checkpoint", summary.checkpoint or "none"),
    ]
    if summary.plot:
        rows.append(("plot", summary.plot))
    if summary.note:
        rows.append(("note", summary.note))
    return rows


def _faults(summary: "Summary") -> str:
    if not summary.faults:
        return "none"
    times = "once" if summary.recoveries == 1 else f"{summary.recoveries} times"
    return (
        f"{summary.faults}, recovered {times} in {format_duration(summary.outage_s)}; "
        f"{summary.redone_steps} committed steps were redone"
    )
