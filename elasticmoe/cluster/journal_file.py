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
from typing import Final, TypeVar

from elasticmoe.controller.journal import JournalError, decode_records, encode_record
from elasticmoe.controller.record import Record
from elasticmoe.errors import StorageError

ROOM_PATIENCE_S: Final = 600.0
"""A full disk is waited for that long: somebody makes room, and training has not suffered."""
RETRY_S: Final = 0.25
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
T = TypeVar("T")
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
    nothing that is not on record goes on by itself as soon as there is room. A disk may refuse a
    line when it is written, or (over a network) when it is synced.
    """

    def __init__(
        self,
        directory: Path,
        run: str,
        tell: Callable[[str], None] = lambda text: None,
        patience_s: float = ROOM_PATIENCE_S,
    ) -> None:
        """Claim the next term of a run. The journal of an earlier run is kept beside it.

        Waits for room where a run goes on: its workers train, and nothing else would have them
        recover from anything. A new one is refused at once.

        Args:
            tell: is given a sentence when the disk is found full, and when it has room again; on
                any thread.
            patience_s: how long room is waited for.

        Raises:
            StorageError: another controller claimed the term first, or the disk refuses, or was
                full for too long.
            JournalError: the journal is damaged.
        """
        self._directory, self._tell, self._patience_s = directory, tell, patience_s
        self._waiting = deque[bytes]()
        """Lines that the disk had no room for."""
        self._unsynced = deque[bytes]()
        """Lines in the file that may not be on the disk: it may find only then that it is full."""
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
            self._path = directory / f"{self.term:08d}"
            self._file = self._claim(Header(self.term, run, read))
            self._end = self._synced_end = self._file.tell()
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
            try:
                self._write_waiting()
            except OSError as error:
                self._bear(error)

    def sync(self) -> None:
        """Return when all that was written before is on the disk.

        Raises:
            StorageError: the disk refuses, or was full for too long.
        """
        with self._refusals():
            self._when_there_is_room(self._put_on_disk)

    def _when_there_is_room(self, attempt: Callable[[], T]) -> T:
        began_s = time.monotonic()
        while True:
            try:
                return attempt()
            except OSError as error:
                self._bear(error)
            if time.monotonic() > began_s + self._patience_s:
                raise StorageError(
                    f"{self.trouble} for {self._patience_s:g} s. Free some space there and start "
                    "the job again: it goes on from its newest checkpoint"
                )
            time.sleep(RETRY_S)

    def _bear(self, error: OSError) -> None:
        """Say, once, that the disk is full; nothing else is borne."""
        if error.errno not in FULL:
            raise error
        if not self.trouble:
            self.trouble = f"{self._path}: {error.strerror}"
            self._tell(
                f"the journal cannot be written ({self.trouble}): the workers train on and nothing "
                f"new is done. Free some space there within {self._patience_s:g} s"
            )

    def _write_waiting(self) -> None:
        """Write what waits."""
        while self._waiting:
            try:
                _write(self._file, self._waiting[0])
            except OSError:
                self._cut_off(self._end)  # no half line: more will follow it in this file
                raise
            self._end += len(self._waiting[0])
            self._unsynced.append(self._waiting.popleft())

    def _put_on_disk(self) -> None:
        with self._lock:
            self._write_waiting()
            count, end = len(self._unsynced), self._end
        try:
            os.fdatasync(self._file.fileno())
        except OSError:  # the kernel may have dropped what it could not write: it is written anew
            with self._lock:
                self._cut_off(self._synced_end)
                self._end = self._synced_end
                self._waiting.extendleft(reversed(self._unsynced))
                self._unsynced.clear()
            raise
        with self._lock:
            self._synced_end = end
            for _ in range(count):
                self._unsynced.popleft()
            if self.trouble and not self._waiting:
                self.trouble = ""
                self._tell("the journal can be written again: what waited for it is on record now")

    def _cut_off(self, end: int) -> None:
        self._file.truncate(end)
        self._file.seek(end)

    def close(self) -> None:
        """Give up the term."""
        self._file.close()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror or error}") from error

    def _claim(self, header: Header) -> FileIO:
        if not self._records:
            return _begin_term(self._create(), header)
        file = self._when_there_is_room(self._create)
        return self._when_there_is_room(lambda: _begin_term(file, header))

    def _create(self) -> FileIO:
        try:
            return self._path.open("xb", buffering=0)
        except FileExistsError:
            raise StorageError(
                f"{self._path} exists already: another controller of this job has taken over"
            ) from None


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
        if later and path.name not in later[0].read:  # its first line came too late
            continue
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


def _begin_term(file: FileIO, header: Header) -> FileIO:
    file.truncate(0)  # of half a line, for which there was no room
    file.seek(0)
    _write(file, _checked(json.dumps(asdict(header)).encode()))
    os.fdatasync(file.fileno())
    _sync_directory(Path(file.name).parent)
    return file


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
