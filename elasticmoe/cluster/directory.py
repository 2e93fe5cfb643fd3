"""A job's directory: whose it is, whether it can be used, and its private files."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO, Final

from elasticmoe.errors import StorageError

MIN_FREE_BYTES: Final = 64 * 1024 * 1024
"""Journal and logs need some room from the start; checkpoints are checked by their size later."""


def check_directory(directory: Path) -> None:
    """Make sure that a job can live in a directory.

    Raises:
        StorageError: it is read-only, full, or taken by a running job.
    """
    lock_directory(directory).close()
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free < MIN_FREE_BYTES:
        raise StorageError(
            f"storage.dir {directory} has {free:,} bytes free, at least {MIN_FREE_BYTES:,} are "
            "needed. Free space, or choose another directory."
        )


def lock_directory(directory: Path) -> IO[str]:
    """Claim a job's directory for as long as the returned file is open.

    Raises:
        StorageError: it cannot be written, or another running job has it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("a+")
    except OSError as error:
        raise StorageError(
            f"storage.dir {directory} cannot be used: {error.strerror}. Choose another one."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "a process that has not said who it is"
        file.close()
        raise StorageError(
            f"storage.dir {directory} belongs to a running job ({owner}). Stop that one first, or "
            "choose another directory."
        ) from None
    try:
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
    except OSError as error:
        file.close()
        raise StorageError(
            f"storage.dir {directory} cannot be written: {error.strerror}. Free space, or choose "
            "another one."
        ) from error
    return file


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read; readers see all of it or nothing."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text + "\n")
    beside.replace(path)
