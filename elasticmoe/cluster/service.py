"""The controller's small HTTP server: what happens now, and two things one may ask for."""

import hmac
import ipaddress
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs, urlsplit

from elasticmoe.cluster.feed import Feed

SELDOM_S: Final = 3600.0
KEEP_ALIVE_S: Final = 5.0
"""A silent event stream gets an empty line this often, so that a lost one is noticed."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Where the server gets its answers; called from its threads."""

    feed: Feed
    metrics: Callable[[], bytes]
    status: Callable[[], dict[str, Any]]
    ask: Callable[[str], None]
    """Takes `stop` or `checkpoint`."""


class Service:
    """Serves one controller until it is closed.

    Asking for something needs the token; on an address that other machines reach everything but
    `/metrics` does.
    """

    def __init__(self, host: str, answers: Answers) -> None:
        self.token = secrets.token_urlsafe(32)
        open_to_all = ipaddress.ip_address(host).is_loopback
        self._followers: set[int] = set()
        shared = {
            "answers": answers,
            "token": self.token,
            "open_to_all": open_to_all,
            "followers": self._followers,
        }
        handler = type("Handler", (_Handler,), shared)
        self._server = ThreadingHTTPServer((host, 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_address[1]}"
        # It wakes when somebody connects, and when its socket is shut down: it need not look.
        serve = partial(self._server.serve_forever, poll_interval=SELDOM_S)
        threading.Thread(target=serve, name="http", daemon=True).start()

    def wait_for_followers(self, timeout_s: float) -> None:
        """Give whoever follows the events time to read their end, then take no more requests."""
        deadline_s = time.monotonic() + timeout_s
        while self._followers and time.monotonic() < deadline_s:
            time.sleep(0.01)
        self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    answers: ClassVar[Answers]
    token: ClassVar[str]
    open_to_all: ClassVar[bool]
    followers: ClassVar[set[int]]
    """Threads that stream events."""
    server_version = "elasticmoe"
    timeout = 60

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/metrics":
            self._reply(HTTPStatus.OK, self.answers.metrics(), "text/plain; version=0.0.4")
        elif not (self.open_to_all or self._may_ask()):
            self._refuse()
        elif url.path == "/status":
            self._reply_json(HTTPStatus.OK, self.answers.status())
        elif url.path == "/events":
            after = parse_qs(url.query).get("after", ["0"])[0]
            if after.isdecimal():
                self._stream(int(after))
            else:
                self._reply_json(HTTPStatus.BAD_REQUEST, {"error": f"after={after} is no number"})
        else:
            self._reply_json(HTTPStatus.NOT_FOUND, {"error": f"{url.path} is not served here"})

    def do_POST(self) -> None:
        what = urlsplit(self.path).path.strip("/")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if what not in ("stop", "checkpoint"):
            self._reply_json(HTTPStatus.NOT_FOUND, {"error": f"/{what} cannot be asked for"})
        elif not self._may_ask():
            self._refuse()
        else:
            self.answers.ask(what)
            self._reply_json(HTTPStatus.ACCEPTED, {"asked": what})

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line each."""

    def _may_ask(self) -> bool:
        given = self.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode())

    def _refuse(self) -> None:
        hint = "send the token of service.json as 'Authorization: Bearer TOKEN'"
        self._reply_json(HTTPStatus.UNAUTHORIZED, {"error": hint})

    def _reply_json(self, status: HTTPStatus, plain: dict[str, Any]) -> None:
        self._reply(status, json.dumps(plain).encode() + b"\n", "application/json")

    def _reply(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, after: int) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        feed = self.answers.feed
        self.followers.add(threading.get_ident())
        try:
            while True:
                lines = feed.after(after, KEEP_ALIVE_S)
                self.wfile.write(b"".join(line for _, line in lines) or b"\n")
                if lines:
                    after = lines[-1][0]
                elif feed.is_over:
                    return
        except ConnectionError:
            return  # whoever followed has left
        finally:
            self.followers.discard(threading.get_ident())
