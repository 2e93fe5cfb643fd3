"""`simulate --rivals`: this design beside others on one trace, with measured costs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from elasticmoe.cli.saying import console, say
from elasticmoe.errors import SpecError

if TYPE_CHECKING:
    from elasticmoe.simulator.traces import Trace


def compare_rivals(trace: "Trace", measured: list[Path], out: Path | None) -> None:
    """Run all models on a trace; print the table, what was measured, and a line of JSON.

    Args:
        measured: JSON files of benchmarks; what none of them holds stays as assumed.
        out: directory for `rivals.json` and `rivals.png`; none: nothing is written.

    Raises:
        SpecError: a file cannot be read, or a field of it is wrong.
    """
    from elasticmoe.simulator.rivals.calibrate import calibrate, read_measurements
    from elasticmoe.simulator.rivals.compare import compare, standard_models
    from elasticmoe.simulator.rivals.job import Job

    names = [f"--measured {path}" for path in measured]
    figures = read_measurements([_read(path) for path in measured], names)
    costs = calibrate(standard_models(), figures)
    found = compare(trace, costs.models, Job())
    table = Table()
    for name in ("model", "goodput", "redone", "protecting", "recovering", "unused", "waiting"):
        table.add_column(name, justify="left" if name == "model" else "right")
    table.add_column("roll backs", justify="right")
    for row in found.rows:
        shares = (row.redone, row.protecting, row.recovering, row.unused, row.waiting)
        cells = [row.model, f"{row.goodput:.3f}", *(f"{share:.3f}" for share in shares)]
        table.add_row(*cells, str(row.rollbacks))
    console().print(table)
    for one in costs.taken:
        say(f"measured: {one.field} of {one.model} is {one.value:.4g} ({one.figure})")
    if not costs.taken:
        say("nothing was measured: every cost is assumed, see docs/rivals.md")
    if out is not None:
        from elasticmoe.report.compared import write_comparison

        write_comparison(found, [asdict(one) for one in costs.taken], out)
        say(f"figures and plot: {out}")
    say(json.dumps({f"goodput, {row.model}": round(row.goodput, 4) for row in found.rows}))


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; of a benchmark's output its last line."""
    try:
        text = path.read_text()
    except OSError as error:
        raise SpecError((f"--measured {path} cannot be read: {error.strerror}",)) from None
    for part in (text, text.strip().rpartition("\n")[2]):
        try:
            plain = json.loads(part)
        except ValueError:
            continue
        if isinstance(plain, dict):
            return plain
    raise SpecError((f"--measured {path}: neither the file nor its last line is a JSON object",))
