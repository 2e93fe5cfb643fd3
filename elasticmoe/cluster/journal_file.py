"""The journal on disk: one file per term, claimed by exclusive create, synced before deeds.

`journal/00000001` belongs to the first controller of a run, `journal/00000002` to the next one.
The first line of a file says how many bytes of each earlier file it continues from, so that a
controller that was replaced, but does not know it yet, cannot add to history.
"""

import errno
import json
import os
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from elasticmoe.controller.journal import JournalError, decode_records, encode_record
from elasticmoe.controller.record import Record
from elasticmoe.errors import StorageError

ROOM_PATIENCE_S: Final = 600.0
"""A full disk is waited for that long: somebody makes room, and training has not suffered."""
RETRY_S: Final = 0.25
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_TERM_NAME: Final = re.compile(r"\d{8}")


@dataclass(frozen=True, slots=True)
class Header:
    """First line of a term's file."""

    term: int
    run: str
    """The submission that the journal belongs to."""
    read: dict[str, int]
    """Bytes of each earlier term that count, by its file's name."""


class FileJournal:
    """One controller's reign over a job's journal.

    While the disk is full, records wait here, in order, and `sync` waits with them: whoever does
    nothing that is not on record goes on by itself as soon as there is room.
    """

    def __init__(
        self,
        directory: Path,
        run: str,
        tell: Callable[[str], None] = lambda text: None,
        patience_s: float = ROOM_PATIENCE_S,
    ) -> None:
        """Claim the next term of a run. The journal of an earlier run is kept beside it.

        Args:
            tell: is given a sentence when the disk is found full, and when it has room again; on
                any thread.
            patience_s: how long `sync` waits for room.

        Raises:
            StorageError: another controller claimed the term first, or the disk refuses.
            JournalError: the journal is damaged.
        """
        self._directory, self._tell, self._patience_s = directory, tell, patience_s
        self._waiting = deque[bytes]()
        """Lines that the disk had no room for."""
        self._lock = threading.Lock()
        """`sync` is called on another thread than `append`."""
        self.trouble = ""
        """Why records wait; empty: none do."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if _run_of(directory) not in (None, run):
                _set_aside(directory)
            self._records, read = _read_terms(directory)
            self.term = max((int(path.name) for path in _terms(directory)), default=0) + 1
            self._file = self._claim(Header(self.term, run, read))
            self._end = self._file.tell()
        except OSError as error:
            raise StorageError(f"{directory}: {error.strerror or error}") from error

    def read(self) -> list[Record]:
        """All records of the run's earlier terms, in order; to be read once, before `append`."""
        records, self._records = self._records, []
        return records

    def append(self, record: Record) -> None:
        """Write a record, if there is room; it survives a crash once `sync` was called after it.

        Raises:
            StorageError: the disk refuses, for another reason than that it is full.
        """
        with self._refusals(), self._lock:
            self._waiting.append(encode_record(record))
            self._write_waiting()

    def sync(self) -> None:
        """Return when all that was written before is on the disk.

        Raises:
            StorageError: the disk refuses, or was full for too long.
        """
        began_s = time.monotonic()
        while not self._has_written():
            if time.monotonic() > began_s + self._patience_s:
                raise StorageError(
                    f"{self.trouble} for {self._patience_s:g} s. Free some space there and start "
                    "the job again: it goes on from its newest checkpoint"
                )
            time.sleep(RETRY_S)
        with self._refusals():
            os.fdatasync(self._file.fileno())

    def _has_written(self) -> bool:
        with self._refusals(), self._lock:
            return self._write_waiting()

    def _write_waiting(self) -> bool:
        """Write what waits; returns whether there was room for all of it."""
        while self._waiting:
            try:
                _write(self._file, self._waiting[0])
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self._take_back(error)
                return False
            self._end += len(self._waiting.popleft())
        if self.trouble:
            self.trouble = ""
            self._tell("the journal can be written again: what waited for it is on record now")
        return True

    def _take_back(self, error: OSError) -> None:
        """Leave no half line behind: more will follow it in this file."""
        self._file.truncate(self._end)
        self._file.seek(self._end)
        if not self.trouble:
            self.trouble = f"{self._file.name}: {error.strerror}"
            self._tell(
                f"the journal cannot be written ({self.trouble}): the workers train on and nothing "
                f"new is done. Free some space there within {self._patience_s:g} s"
            )

    def close(self) -> None:
        """Give up the term."""
        self._file.close()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self._file.name}: {error.strerror or error}") from error

    def _claim(self, header: Header) -> FileIO:
        path = self._directory / f"{header.term:08d}"
        try:
            file = path.open("xb", buffering=0)
        except FileExistsError:
            raise StorageError(
                f"{path} exists already: another controller of this job has taken over"
            ) from None
        _write(file, _checked(json.dumps(asdict(header)).encode()))
        os.fdatasync(file.fileno())
        _sync_directory(self._directory)
        return file


def read_journal(directory: Path) -> list[Record]:
    """The records of a job's newest run, without claiming anything; empty if there is none.

    Raises:
        JournalError: the journal is damaged.
    """
    return _read_terms(directory)[0]


def _read_terms(directory: Path) -> tuple[list[Record], dict[str, int]]:
    """Records of all terms, and the bytes of each that were understood."""
    files = _terms(directory)
    headers = [_header(path) for path in files]
    records: list[Record] = []
    read: dict[str, int] = {}
    for position, path in enumerate(files):
        if headers[position] is None:  # claimed by a controller that died before it wrote
            continue
        data = path.read_bytes()
        later = [header for header in headers[position + 1 :] if header is not None]
        if later:
            data = data[: later[0].read[path.name]]
        first, *lines = data.splitlines(keepends=True)
        found = decode_records(lines, first_number=len(records))
        records += found
        read[path.name] = len(first) + sum(map(len, lines[: len(found)]))
    return records, read


def _terms(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _TERM_NAME.fullmatch(path.name))


def _run_of(directory: Path) -> str | None:
    headers = [header for path in _terms(directory) if (header := _header(path)) is not None]
    return headers[0].run if headers else None


def _header(path: Path) -> Header | None:
    with path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        return None
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        raise JournalError(f"{path}: its first line is damaged")
    return Header(**json.loads(text))


def _set_aside(directory: Path) -> None:
    number = 1
    while (kept := directory.with_name(f"{directory.name}-{number}")).exists():
        number += 1
    directory.rename(kept)
    directory.mkdir()
    _sync_directory(directory.parent)


def _checked(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _write(file: FileIO, line: bytes) -> None:
    view = memoryview(line)
    while view:
        view = view[file.write(view) :]


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
