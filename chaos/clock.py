"""A wall clock that can be shifted while processes run, without touching the machine's own.

A small library, compiled when it is wanted, stands between Python and the C library's
`clock_gettime`; a file of eight bytes says how far the clock is ahead.
"""

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chaos.errors import ChaosError, NotFiredError

_SOURCE: Final = Path(__file__).parent / "shims" / "clock.c"
_NOW: Final = "import time; print(repr(time.time()))"


class Clock:
    """One clock for all processes that are started under it."""

    def __init__(self, directory: Path) -> None:
        """Compile the library into a directory.

        Raises:
            ChaosError: there is no C compiler.
        """
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise ChaosError("skewed clocks need a C compiler (cc)")
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / "clock"
        self._file.write_bytes(struct.pack("q", 0))
        library = directory / "clock.so"
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise ChaosError(f"the clock's library does not compile: {done.stderr.strip()}")
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._file)}
        """With which a process must be started to read this clock."""

    def shift(self, seconds: float) -> str:
        """Set how far the clock is ahead; returns the evidence.

        Raises:
            NotFiredError: a process under this clock reads another time.
        """
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", int(seconds * 1e9)))
        read = subprocess.run(
            [sys.executable, "-S", "-c", _NOW],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=True,
        )
        ahead_s = float(read.stdout) - time.time()
        if abs(ahead_s - seconds) > 5:
            raise NotFiredError(f"the clock is {ahead_s:.1f} s ahead, not {seconds:g}")
        return f"processes of the job read a clock that is {ahead_s:.0f} s ahead"

    @contextmanager
    def for_children(self) -> Iterator[None]:
        """Processes that are started meanwhile, by whatever library, read this clock."""
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
