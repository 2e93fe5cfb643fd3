"""SIGTERM in a process of Ray's: a notice instead of the end.

Python sets signal handlers on the main thread only. Ray keeps that thread, has set a handler of its
own on it, and runs an asynchronous actor on another one. The main thread passes through the
interpreter with every call to the actor, though, and the interpreter then makes the calls that are
pending for it.
"""

import asyncio
import ctypes
import signal
from collections.abc import Callable
from typing import Any, Final

_PENDING_CALL: Final = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_kept: list[Any] = []
"""What the interpreter may still call must not be freed."""


def heed_sigterm(note: Callable[[], None]) -> None:
    """From the next call to this actor on, SIGTERM makes `note` run on the present event loop."""
    loop = asyncio.get_running_loop()

    def heard(number: int, frame: object) -> None:
        loop.call_soon_threadsafe(note)

    def install(nothing: object) -> int:
        signal.signal(signal.SIGTERM, heard)
        return 0

    pending = _PENDING_CALL(install)
    _kept.append(pending)
    ctypes.pythonapi.Py_AddPendingCall(pending, None)
