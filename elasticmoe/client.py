"""Talks to a running job's controller over HTTP; knows neither Ray nor torch.

`GET /events?after=N` streams one JSON object per line and stays open until the job ends. Every
line has `n` (its number, ascending), `at_s` (Unix seconds) and `kind`:

    {"kind": "story", "text": "worker 3 was killed (signal 9); ..."}
    {"kind": "workers", "workers": [{"worker": 3, "pid": 4711, "node": "a"}]}
    {"kind": "step", "step": 213, "generation": 2, "seconds": 0.19, "loss": 2.1, "metrics": {...}}
    {"kind": "end", "outcome": "done", "reason": "...", "checkpoint": "...", "summary": {...}}

`GET /status` is one JSON object, `GET /metrics` Prometheus text, `POST /stop` asks the job to
write a checkpoint and end, `POST /checkpoint` to write one and go on.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, Self

from elasticmoe.errors import ClusterError

CONNECT_TIMEOUT_S: Final = 10.0
STREAM_TIMEOUT_S: Final = 30.0
"""The controller sends an empty line at least every few seconds, so silence means it is gone."""
RECONNECT_TRIES: Final = 80
"""A controller that was killed is back within seconds; with its node, after some 15 (measured)."""
RECONNECT_WAIT_S: Final = 0.5
SERVICE_FILE: Final = "service.json"
"""In a job's directory while it runs: where its controller answers, and the token."""
OUTCOME_FILE: Final = "outcome.json"
"""In a job's directory once it has ended."""


class UnreachableError(ClusterError):
    """Nothing answers at the controller's address; it may be about to come back."""

    retryable = True


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line of a job's event stream."""

    number: int
    at_s: float
    kind: str
    fields: Mapping[str, Any]
    """Everything else on the line."""

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Parse one line of the stream."""
        plain = json.loads(line)
        number, at_s, kind = plain.pop("n"), plain.pop("at_s"), plain.pop("kind")
        return cls(number=number, at_s=at_s, kind=kind, fields=plain)


class JobClient:
    """One job, by the address of its controller."""

    def __init__(self, url: str, token: str | None = None, directory: Path | None = None) -> None:
        """
        Args:
            url: of the controller's HTTP server.
            token: needed to ask for something.
            directory: the job's, if it can be read here: a controller that was restarted
                answers elsewhere, and the directory says where.
        """
        self.url, self._token, self._directory = url.rstrip("/"), token, directory

    @classmethod
    def of_directory(cls, directory: Path) -> Self:
        """The job that runs in a directory.

        Raises:
            ClusterError: no job runs there.
        """
        try:
            facts = json.loads((directory / SERVICE_FILE).read_text())
        except FileNotFoundError:
            raise ClusterError(f"no job runs in {directory}") from None
        return cls(facts["url"], facts["token"], directory)

    def status(self) -> dict[str, Any]:
        """What the job is doing right now.

        Raises:
            ClusterError: the controller cannot be reached or refuses.
        """
        with self._open("/status", CONNECT_TIMEOUT_S) as reply:
            status: dict[str, Any] = json.load(reply)
        return status

    def stop(self) -> None:
        """Ask the job to write a checkpoint and end.

        Raises:
            ClusterError: the controller cannot be reached or refuses.
        """
        self._ask("/stop")

    def checkpoint(self) -> None:
        """Ask the job to write a checkpoint and go on.

        Raises:
            ClusterError: the controller cannot be reached or refuses.
        """
        self._ask("/checkpoint")

    def events(self, after: int = 0) -> Iterator[JobEvent]:
        """Follow the job's events until its `end`, through lost connections.

        Args:
            after: number of the last event that is known already; 0 begins at the first.

        Raises:
            ClusterError: the controller refuses, or stayed out of reach for all tries in a row.
        """
        failures = 0
        while True:
            try:
                for event in self._stream(after):
                    failures, after = 0, event.number
                    yield event
                    if event.kind == "end":
                        return
                failure: Exception = ConnectionError("the stream ended before the job did")
            except (OSError, HTTPException, UnreachableError) as error:
                failure = error
            failures += 1
            if failures > RECONNECT_TRIES or self._is_over():
                raise UnreachableError(f"lost the controller at {self.url}: {failure}")
            time.sleep(RECONNECT_WAIT_S)
            self._look_up()

    def _is_over(self) -> bool:
        return self._directory is not None and (self._directory / OUTCOME_FILE).exists()

    def _look_up(self) -> None:
        if self._directory is not None and (self._directory / SERVICE_FILE).exists():
            found = JobClient.of_directory(self._directory)
            self.url, self._token = found.url, found._token

    def _stream(self, after: int) -> Iterator[JobEvent]:
        with self._open(f"/events?after={after}", STREAM_TIMEOUT_S) as reply:
            for line in reply:
                if line.strip():
                    yield JobEvent.from_line(line)

    def _ask(self, path: str) -> None:
        with self._open(path, CONNECT_TIMEOUT_S, data=b""):
            return

    def _open(self, path: str, timeout_s: float, data: bytes | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            detail = error.read(1_000).decode(errors="replace").strip()
            raise ClusterError(f"{self.url}{path} answered {error.code}: {detail}") from None
        except OSError as error:
            raise UnreachableError(f"cannot reach the controller at {self.url}: {error}") from None
