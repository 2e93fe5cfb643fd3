"""Directories that cannot be used, and blocks of odd sizes."""

import errno
import os
from pathlib import Path

import pytest

from elasticmoe.checkpoint.store import open_store
from elasticmoe.errors import StorageError


def test_a_fresh_directory_is_usable_and_stays_empty(tmp_path: Path) -> None:
    store = open_store(tmp_path / "new" / "place")

    store.check_usable(1000)

    assert store.entries() == {}


def test_a_full_disk_is_refused_with_the_number_needed(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"1,000,000,000,000,000,000 are needed"):
        open_store(tmp_path).check_usable(10**18)


def test_a_file_too_large_for_the_disk_is_refused_before_it_is_written(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    with pytest.raises(StorageError, match="bytes free"), store.writing("large", 10**18):
        pass

    assert store.entries() == {}


def test_a_disk_that_fills_up_while_writing_is_one_sentence(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    with pytest.raises(StorageError, match="the disk is full"), store.writing("file", 10):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert store.entries() == {}


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="a part of the path is a file"):
        open_store(tmp_path / "file" / "checkpoints").check_usable()


def test_an_unknown_scheme_lists_the_known_ones() -> None:
    with pytest.raises(StorageError, match="s3://"):
        open_store("gopher://host/path")


@pytest.mark.parametrize("sizes", [[4096], [4096, 100], [1, 2, 3], [8192, 4095, 1]])
def test_blocks_of_any_size_arrive_whole(tmp_path: Path, sizes: list[int]) -> None:
    store = open_store(tmp_path)
    data = os.urandom(sum(sizes))

    with store.writing("deep/file", len(data)) as write:
        rest = memoryview(data)
        for size in sizes:
            write(rest[:size])
            rest = rest[size:]

    assert store.read_small("deep/file") == data
    assert bytes(store.open("deep/file").read(1, 5)) == data[1:6]


def test_a_padded_last_block_is_cut(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")

    with store.writing("file", 5) as write:
        write(memoryview(b"12345 and padding"))

    assert store.read_small("file") == b"12345"


def test_the_options_of_a_uri_stay_at_its_end() -> None:
    store = open_store("s3://bucket/runs/?region=eu-west-1")

    assert not store.is_local
    assert store.uri_of("step-00000001") == "s3://bucket/runs/step-00000001?region=eu-west-1"
    assert open_store(store.uri_of("step-00000001")).root == "bucket/runs/step-00000001"
