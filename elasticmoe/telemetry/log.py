"""A structured log: an event's name and fields, on one line, over the standard `logging`.

    log = get_log(__name__)
    log.info("resize", workers=24, reason=decision.reason)

writes `resize workers=24 reason="lost 2 workers"`.
"""

import json
import logging
import re
from typing import Any, Final, TextIO

_BARE: Final = re.compile(r"[\w.:/@%+,-]+")
"""Text that needs no quotes."""


class Log:
    """Writes events to one logger."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, **fields: Any) -> None:
        """For whoever develops this."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Something happened as it should."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something is wrong, and has been dealt with."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something is wrong, and somebody has to do something."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Like `error`, with the traceback of the exception being handled."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._logger.error(format_event(event, fields), exc_info=True, stacklevel=2)

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, format_event(event, fields), stacklevel=3)


def get_log(name: str) -> Log:
    """The log of a module; `name` is its `__name__`."""
    return Log(logging.getLogger(name))


def format_event(event: str, fields: dict[str, Any]) -> str:
    """Write an event and its fields as one line of `key=value`.

    >>> format_event("resize", {"workers": 24, "reason": "lost 2 workers"})
    'resize workers=24 reason="lost 2 workers"'
    """
    return " ".join([event, *(f"{key}={_show(value)}" for key, value in fields.items())])


def start_logging(stream: TextIO, level: int = logging.INFO) -> None:
    """Send this process's log to a stream, each line with time, level and module."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger("elasticmoe")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    # JSON quoting also keeps line breaks out: an event is one line.
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)
