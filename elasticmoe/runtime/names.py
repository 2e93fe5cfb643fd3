"""No name lookups while a generation forms.

torch formats both ends of every connection to a rendezvous store with their host names
(`formatSockAddr` in its socket.cpp): each member asks the name server who the store's host is, and
the store's only thread asks who each member is, one after the other. One lost packet to the name
server holds up everybody for glibc's 5 s; without a name server it is 10 s. torch gives up names
for the rest of a process's life once a lookup has failed for the moment (EAI_AGAIN), and forked
processes inherit that. So one lookup is made to fail.
"""

import ctypes
import os
import threading
import time
from datetime import timedelta
from typing import Final

from torch.distributed import TCPStore  # type: ignore[attr-defined]

UNNAMED_HOST: Final = "127.99.99.99"
"""This host, by an address of which no file knows a name."""
PATIENCE: Final = timedelta(seconds=2)
"""Whoever forks waits for it; the lookup comes before the connection."""


def look_up_no_names() -> None:
    """Have torch name hosts by their addresses, in this process and whatever it forks.

    Other lookups work as before. Prints torch's warning that a host name cannot be retrieved.
    """
    before = _num_threads()
    thread = threading.Thread(target=_fail_to_look_up)
    thread.start()
    thread.join()
    deadline_s = time.monotonic() + PATIENCE.total_seconds()
    while _num_threads() > before and time.monotonic() < deadline_s:
        time.sleep(0.001)  # a fork beside a thread that is about to end would not be safe


def _num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _fail_to_look_up() -> None:
    """Connect to a store while this thread's resolver (resolver(3), `_res`) makes no attempt."""
    libc = ctypes.CDLL(None)
    libc.__res_init()
    libc.__res_state.restype = ctypes.POINTER(ctypes.c_int)  # retrans, retry, ...
    libc.__res_state()[1] = 0
    TCPStore(UNNAMED_HOST, 0, None, is_master=True, timeout=PATIENCE, wait_for_workers=False)
