"""A directory on any pyarrow file system, with the few operations checkpoints need.

Local files are written beside their place, synced and renamed; an object store shows an object
only when its upload is complete.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa
from pyarrow import fs

from elasticmoe.errors import StorageError

DIRECT_ALIGN: Final = 4096
"""Sizes and addresses of direct writes are multiples of this, on every common disk."""
_O_DIRECT: Final[int] = getattr(os, "O_DIRECT", 0)
_READ_AHEAD: Final = 16 << 20

WriteBlock = Callable[[memoryview], None]


class FileReader(Protocol):
    """Reads pieces of one file."""

    num_bytes: int

    def read(self, offset: int, num_bytes: int) -> memoryview:
        """A writable view or copy of a piece; never changes the file."""
        ...


@dataclass(frozen=True)
class Store:
    """A root directory; names are relative to it and use `/`."""

    uri: str
    """As given, without a trailing slash."""
    root: str
    files: fs.FileSystem

    @property
    def is_local(self) -> bool:
        """Whether the root is a directory of this machine's file system."""
        return isinstance(self.files, fs.LocalFileSystem)

    def uri_of(self, name: str) -> str:
        """The URI (or path) of something in the store; `open_store` takes it."""
        base, query = split_query(self.uri)
        return f"{base}/{name}{query}"

    def entries(self, name: str = "") -> dict[str, int | None]:
        """Names in a directory with their sizes, sorted; none for a directory's size.
        An absent directory is empty."""
        selector = fs.FileSelector(self._path(name), allow_not_found=True)
        with _explained(self.uri_of(name)):
            found = self.files.get_file_info(selector)
        return {info.base_name: info.size for info in sorted(found, key=lambda i: i.base_name)}

    def read_small(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: it does not exist.
        """
        where, path = self.uri_of(name), self._path(name)
        with _explained(where, may_be_absent=True), self.files.open_input_stream(path) as file:
            return bytes(file.read())

    def write_small(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees all of it or nothing, and a crash keeps it."""
        with self.writing(name, len(data)) as write:
            write(memoryview(data))

    @contextmanager
    def writing(self, name: str, num_bytes: int) -> Iterator[WriteBlock]:
        """Write a file of known size in blocks; it appears at its name when the block ends.

        Blocks at `DIRECT_ALIGN`ed addresses, of such sizes, bypass the page cache: half the CPU
        time, and training's own pages stay. The last one may be padded beyond `num_bytes`.
        Nothing is left behind if the body raises.
        """
        with _explained(self.uri_of(name)):
            if self.is_local:
                with _writing_local(Path(self._path(name)), num_bytes) as write:
                    yield write
            else:
                with _writing_stream(self.files, self._path(name), num_bytes) as write:
                    yield write

    def open(self, name: str) -> FileReader:
        """Open a file for reading pieces: memory-mapped if local.

        Raises:
            FileNotFoundError: it does not exist.
        """
        with _explained(self.uri_of(name), may_be_absent=True):
            if self.is_local:
                return _MappedFile(self._path(name))
            return _RemoteFile(self.files.open_input_file(self._path(name)))

    def delete_file(self, name: str) -> None:
        """Remove a file; an absent one is fine."""
        with _explained(self.uri_of(name)):
            try:
                self.files.delete_file(self._path(name))
            except FileNotFoundError:
                return

    def delete_dir(self, name: str) -> None:
        """Remove a directory and everything in it; an absent one is fine."""
        with _explained(self.uri_of(name)):
            try:
                self.files.delete_dir(self._path(name))
            except FileNotFoundError:
                return

    def check_usable(self, num_bytes: int = 0) -> None:
        """Make sure that the root exists, can be written, and (locally) has room.

        Raises:
            StorageError: with the reason and, for room, the number needed.
        """
        probe = f".probe-{os.getpid()}"
        self.write_small(probe, b"probe")
        self.delete_file(probe)
        if self.is_local:
            _check_room(self.root, num_bytes)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root


def open_store(uri_or_path: str | os.PathLike[str]) -> Store:
    """Open a directory by local path or by pyarrow file system URI (`s3://`, `gs://`, `file://`).

    Raises:
        StorageError: the URI cannot be used.
    """
    text = os.fspath(uri_or_path).rstrip("/") or "/"
    try:
        if "://" not in text:
            return Store(uri=text, root=os.path.abspath(text), files=fs.LocalFileSystem())
        files, root = fs.FileSystem.from_uri(text)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(
            f"{text}: {error}. Give a local path or a URI that pyarrow.fs understands "
            "(file://, s3://, gs://, abfs://, hdfs://)."
        ) from None
    return Store(uri=text, root=root.rstrip("/"), files=files)


def split_query(uri_or_path: str) -> tuple[str, str]:
    """A URI without its options, and the options (`?region=...`); a path has none."""
    base, mark, query = (
        uri_or_path.partition("?") if "://" in uri_or_path else (uri_or_path, "", "")
    )
    return base.rstrip("/"), mark + query


class _MappedFile:
    """A private mapping: tensors over it may be written without touching the file."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self.num_bytes = os.fstat(file.fileno()).st_size
            # an empty file cannot be mapped
            self._data: Any = (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                if self.num_bytes
                else bytearray()
            )

    def read(self, offset: int, num_bytes: int) -> memoryview:
        return memoryview(self._data)[offset : offset + num_bytes]


class _RemoteFile:
    """Fetches large pieces, because neighbours are read one after the other."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self.num_bytes = int(file.size())
        self._start, self._block = 0, b""

    def read(self, offset: int, num_bytes: int) -> memoryview:
        if not self._start <= offset <= offset + num_bytes <= self._start + len(self._block):
            self._start = offset
            self._block = self._file.read_at(max(num_bytes, _READ_AHEAD), offset)
        first = offset - self._start
        return memoryview(bytearray(self._block[first : first + num_bytes]))


@contextmanager
def _writing_local(path: Path, num_bytes: int) -> Iterator[WriteBlock]:
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_room(path.parent, num_bytes)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    file = _open_direct(beside)
    try:
        yield lambda block: _write_all(file, block)
        os.ftruncate(file, num_bytes)
        os.fsync(file)
        os.replace(beside, path)
        _sync_directory(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)


def _open_direct(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | _O_DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o644)  # this file system knows no direct writes


def _write_all(file: int, block: memoryview) -> None:
    while block:
        try:
            written = os.write(file, block)
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(file, fcntl.F_GETFL) & _O_DIRECT:
                raise
            written = 0  # not aligned as this disk wants it
        if written < len(block):  # the rest is not aligned: let it pass through the page cache
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~_O_DIRECT)
        block = block[written:]


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def _writing_stream(files: fs.FileSystem, path: str, num_bytes: int) -> Iterator[WriteBlock]:
    left = num_bytes

    def write(block: memoryview) -> None:
        nonlocal left
        stream.write(block[:left])
        left -= len(block[:left])

    try:
        stream = files.open_output_stream(path)
    except FileNotFoundError:  # unlike object stores, this one has real directories
        files.create_dir(path.rpartition("/")[0], recursive=True)
        stream = files.open_output_stream(path)
    try:
        with stream:
            yield write
    except BaseException:
        files.delete_file(path)  # closing has published what was written so far
        raise


def _check_room(directory: str | Path, num_bytes: int) -> None:
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free < num_bytes:
        raise StorageError(
            f"{directory} has {free:,} bytes free, {num_bytes:,} are needed. "
            "Free space, or lower checkpoint.keep."
        )


_REMEDIES: Final[dict[int | None, str]] = {
    errno.ENOSPC: "the disk is full; free space, or lower checkpoint.keep",
    errno.EDQUOT: "the disk quota is used up; free space, or lower checkpoint.keep",
    errno.EROFS: "the file system is read-only; choose another directory",
    errno.EACCES: "permission denied; choose a directory that this user can use",
    errno.EPERM: "not permitted; choose a directory that this user can use",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.EEXIST: "a part of the path is a file, not a directory",
}


@contextmanager
def _explained(where: str, *, may_be_absent: bool = False) -> Iterator[None]:
    """Turn the world's errors into ours."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if may_be_absent and isinstance(error, FileNotFoundError):
            raise
        remedy = _REMEDIES.get(getattr(error, "errno", None), str(error))
        raise StorageError(f"{where}: {remedy}.") from error
