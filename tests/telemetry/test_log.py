import io
import logging
from collections.abc import Iterator

import pytest

from elasticmoe.telemetry.log import format_event, get_log, start_logging


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger("elasticmoe")
    before = (root.handlers[:], root.level, root.propagate)
    captured = io.StringIO()
    start_logging(captured)
    yield captured
    root.handlers[:], root.level, root.propagate = before[0], before[1], before[2]


def test_a_record_is_an_event_and_its_fields_on_one_line(stream: io.StringIO) -> None:
    get_log("elasticmoe.test").info("resize", workers=24, reason="lost 2\nworkers")

    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r'INFO elasticmoe.test resize workers=24 reason="lost 2\nworkers"')


def test_records_below_the_level_are_not_written(stream: io.StringIO) -> None:
    get_log("elasticmoe.test").debug("detail", number=1)

    assert stream.getvalue() == ""


def test_an_exception_is_written_with_its_traceback(stream: io.StringIO) -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        get_log("elasticmoe.test").exception("failed", step=3)

    assert "failed step=3" in stream.getvalue()
    assert "ValueError: boom" in stream.getvalue()


def test_starting_the_log_again_does_not_write_twice(stream: io.StringIO) -> None:
    start_logging(stream)

    get_log("elasticmoe.test").warning("once")

    assert stream.getvalue().count("once") == 1


@pytest.mark.parametrize(
    "value, text",
    [
        (24, "24"),
        (0.1234567, "0.123457"),
        ("a b", '"a b"'),
        ("", '""'),
        (None, "None"),
        ("x/y:1", "x/y:1"),
    ],
)
def test_values_are_quoted_only_where_needed(value: object, text: str) -> None:
    assert format_event("event", {"key": value}) == f"event key={text}"
