"""Job files: the one place that opens what a user wrote."""

from collections.abc import Sequence
from pathlib import Path

from elasticmoe.errors import SpecError
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_json, parse_toml


def read_job(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job file: JSON if its name ends so, else TOML.

    Raises:
        SpecError: it cannot be read, or is not a valid job.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SpecError((f"{path} cannot be read: {reason}",)) from None
    return (parse_json if path.suffix == ".json" else parse_toml)(text, overrides)
