"""A controller's HTTP face that tells a script of lines."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


@dataclass
class FakeController:
    """Streams its lines; each connection ends after `lines_per_connection` of them."""

    lines: list[dict[str, Any]]
    lines_per_connection: int = 1_000
    asked: list[str] = field(default_factory=list)
    """Requests in their order."""
    url: str = ""


def line(number: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"n": number, "at_s": 100.0 + number, "kind": kind, **fields}


def step_line(number: int, step: int, *, generation: int = 1, loss: float = 2.0) -> dict[str, Any]:
    layer = {
        "layer": "layer.1",
        "max_violation": 0.5,
        "dead_experts": 1,
        "load": [150, 100, 150, 0],
    }
    return line(
        number, "step", step=step, generation=generation, loss=loss, metrics={"layers": [layer]}
    )


def end_line(number: int, outcome: str = "done") -> dict[str, Any]:
    return line(number, "end", outcome=outcome, reason="all done", summary={"outcome": outcome})


@contextmanager
def serving(controller: FakeController) -> Iterator[FakeController]:
    """Serve a script on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        told: ClassVar[FakeController] = controller

        def do_GET(self) -> None:
            self.told.asked.append(self.path)
            after = int(self.path.partition("after=")[2] or 0)
            self.send_response(200)
            self.end_headers()
            left = [one for one in self.told.lines if one["n"] > after]
            for one in left[: self.told.lines_per_connection]:
                self.wfile.write(b"\n" + json.dumps(one).encode() + b"\n")

        def do_POST(self) -> None:
            self.told.asked.append(self.path)
            allowed = self.headers.get("Authorization") == "Bearer secret"
            self.send_response(202 if allowed else 401)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    controller.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield controller
    finally:
        server.shutdown()
        server.server_close()
