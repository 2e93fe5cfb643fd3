"""What several commands ask of their options before they begin: an error names the option."""

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from elasticmoe.errors import DataError, SpecError, StorageError

if TYPE_CHECKING:
    from elasticmoe.simulator.costs import Costs
    from elasticmoe.simulator.traces import Trace


def check_above_zero(numbers: Mapping[str, float | None]) -> None:
    """Make sure that options are numbers above 0; None: not given.

    Raises:
        SpecError: names those that are not.
    """
    problems = tuple(
        f"{name} {value:g}: must be a number above 0"
        for name, value in numbers.items()
        if value is not None and not (isfinite(value) and value > 0)
    )
    if problems:
        raise SpecError(problems)


def make_directory(directory: Path, option: str = "--out") -> None:
    """Make a directory for what a command will leave, before hours are spent on it.

    Raises:
        StorageError: it cannot be made; names the option.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{option} {directory} cannot be made: {error.strerror}. Choose another one."
        ) from None


def read_costs_file(path: Path | None) -> "Costs":
    """Costs from a JSON file; none: the defaults.

    Raises:
        SpecError: it cannot be read, or names what there is not.
    """
    from elasticmoe.simulator.costs import Costs, read_costs

    if path is None:
        return Costs()
    try:
        plain = json.loads(path.read_text())
    except OSError as error:
        raise SpecError((f"--costs {path} cannot be read: {error.strerror}",)) from None
    except ValueError as error:  # not text, or not JSON
        raise SpecError((f"--costs {path} is not JSON: {error}",)) from None
    if not isinstance(plain, dict):
        raise SpecError((f'--costs {path}: write a JSON object, {{"step_s": 0.2}} for example',))
    return read_costs(plain)


def read_trace_file(path: Path) -> "Trace":
    """A trace from a file of rows `ms,op,node`.

    Raises:
        SpecError: it cannot be read, a row is wrong, or there is none.
    """
    from elasticmoe.simulator.traces import read_trace

    try:
        with path.open() as lines:
            trace = read_trace(lines)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SpecError((f"--trace {path} cannot be read: {reason}",)) from None
    except DataError as error:
        raise SpecError((f"--trace {path}: {error}",)) from None
    if not trace.events:
        raise SpecError((f"--trace {path} has no row: write rows ms,op,node, as 0,add,node1",))
    return trace
