"""The controller's HTTP server: it sleeps until somebody asks, and ends when it is told to."""

import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from elasticmoe.cluster.feed import Feed
from elasticmoe.cluster.service import Answers, Service


def test_it_answers_sleeps_meanwhile_and_ends_at_once() -> None:
    service = Service("127.0.0.1", Answers(Feed(1), lambda: b"up 1\n", dict, print))
    (http,) = (thread for thread in threading.enumerate() if thread.name == "http")
    assert _read(service) == b"up 1\n"
    before = _wakes(http)

    time.sleep(1.2)

    assert _wakes(http) == before
    assert _read(service) == b"up 1\n"
    began_s = time.monotonic()
    service.wait_for_followers(timeout_s=5.0)
    assert time.monotonic() - began_s < 2.0
    http.join(timeout=2.0)
    assert not http.is_alive()
    with pytest.raises(urllib.error.URLError):
        _read(service)


def _read(service: Service) -> bytes:
    with urllib.request.urlopen(f"{service.url}/metrics", timeout=5.0) as answer:
        text: bytes = answer.read()
    return text


def _wakes(thread: threading.Thread) -> int:
    """How often it has given its core away by itself; it does so whenever it goes to sleep."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
