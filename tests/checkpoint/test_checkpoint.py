"""Writing, sealing, finding, reading and deleting."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import fs
from safetensors.torch import load_file

from elasticmoe.checkpoint.manifest import UNIT_PARTS, file_row
from elasticmoe.checkpoint.read import (
    find_checkpoints,
    newest_valid,
    open_checkpoint,
    open_checkpoint_at,
    open_verified,
)
from elasticmoe.checkpoint.store import Store
from elasticmoe.checkpoint.write import delete_checkpoint, seal, write_part
from elasticmoe.errors import CheckpointError
from tests.checkpoint.small import build_inventory, build_manifest, unit_values, write_checkpoint


def through_streams(path: Path) -> Store:
    """A store on a file system that is not local as far as the code can tell."""
    path.mkdir(parents=True, exist_ok=True)
    files = fs.SubTreeFileSystem(str(path), fs.LocalFileSystem())
    return Store(uri="sub:///", root="", files=files)


@pytest.mark.parametrize("writers", [1, 2, 4])
def test_units_read_back_bit_exact_whoever_wrote_them(store: Store, writers: int) -> None:
    write_checkpoint(store, 200, writers)

    checkpoint = open_verified(store, 200)

    checkpoint.check_complete(build_inventory())
    for unit in build_inventory().units:
        for part, tensor in zip(UNIT_PARTS, checkpoint.read_unit(unit.index), strict=True):
            assert torch.equal(tensor, unit_values(unit.index, part, unit.numel, 200))
    assert checkpoint.read("bias").tolist() == [[0.0, 1.0]]
    assert checkpoint.manifest.state["rate"] == 0.1 + 0.2


def test_a_store_without_local_files_holds_checkpoints_too(tmp_path: Path) -> None:
    remote = through_streams(tmp_path / "bucket")

    write_checkpoint(remote, 200)
    checkpoint = open_verified(remote)

    assert not remote.is_local
    assert find_checkpoints(remote) == [200]
    assert torch.equal(checkpoint.read_unit(2)[1], unit_values(2, "exp_avg", 32, 200))
    delete_checkpoint(remote, 200)
    assert find_checkpoints(remote) == []


def test_safetensors_itself_reads_a_part(store: Store) -> None:
    tensors = {
        "half": torch.arange(5, dtype=torch.bfloat16),
        "long": torch.arange(6).view(2, 3),
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "none": torch.empty(0, 4),
        "bits": torch.tensor([True, False, True]),
    }

    write_part(store, 1, "g0-w0", tensors.items())

    found = load_file(os.path.join(store.root, "step-00000001", "g0-w0.safetensors"))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_arrays_larger_than_a_block_and_strided_ones_are_written_whole(store: Store) -> None:
    large = np.arange(3_000_001, dtype=np.float32)
    strided = torch.arange(12.0).view(3, 4).t()
    raw = memoryview(bytearray(b"abc"))

    files = write_part(store, 1, "w", [("large", large), ("strided", strided), ("raw", raw)])
    seal(store, build_manifest(1, files))
    checkpoint = open_verified(store, 1)

    assert np.array_equal(checkpoint.read("large").numpy(), large)
    assert torch.equal(checkpoint.read("strided"), strided)
    assert checkpoint.read("raw").tolist() == list(b"abc")


def test_a_worker_without_homes_writes_an_empty_part(store: Store) -> None:
    files = write_part(store, 1, "w", [])

    seal(store, build_manifest(1, files))

    assert open_verified(store, 1).rows == {}


def test_writing_to_what_was_read_leaves_the_file_alone(store: Store) -> None:
    write_checkpoint(store, 200)

    open_checkpoint(store, 200).read_unit(0)[0].zero_()

    open_verified(store, 200)


def test_parts_without_a_manifest_are_no_checkpoint(store: Store) -> None:
    write_part(store, 300, "g3-w0", [("bias", torch.zeros(1))])

    assert find_checkpoints(store) == []
    with pytest.raises(CheckpointError, match="holds no valid checkpoint"):
        open_verified(store)


def test_an_empty_place_has_no_checkpoints(store: Store) -> None:
    assert find_checkpoints(store) == []
    assert newest_valid(store) == (None, ())


def test_a_failed_write_leaves_nothing_behind(store: Store) -> None:
    def fail_half_way() -> None:
        with store.writing("step-00000001/w.safetensors", 8192) as write:
            write(memoryview(bytearray(4096)))
            raise RuntimeError("snapshot lost")

    with pytest.raises(RuntimeError, match="snapshot lost"):
        fail_half_way()

    assert store.entries("step-00000001") == {}


def test_sealing_removes_what_an_earlier_attempt_left(store: Store) -> None:
    write_part(store, 200, "g2-w0", [("bias", torch.zeros(1))])

    manifest = write_checkpoint(store, 200)

    names = {file.name for file in manifest.files} | {"manifest.json"}
    assert set(store.entries("step-00000200")) == names


def test_a_part_that_did_not_arrive_prevents_sealing(store: Store) -> None:
    files = write_part(store, 200, "g3-w0", [("bias", torch.zeros(1))])
    store.delete_file("step-00000200/g3-w0.safetensors")

    with pytest.raises(CheckpointError, match="has None bytes"):
        seal(store, build_manifest(200, files))


def test_the_same_unit_from_two_writers_prevents_sealing(store: Store) -> None:
    files = write_part(store, 1, "g0-w0", [("unit.0.master", torch.zeros(16))])
    files += write_part(store, 1, "g0-w1", [("unit.0.master", torch.zeros(16))])

    with pytest.raises(CheckpointError, match=r"unit\.0\.master is in g0-w0.* and g0-w1"):
        seal(store, build_manifest(1, files))


def test_one_name_twice_from_one_writer_is_our_mistake(store: Store) -> None:
    with pytest.raises(ValueError, match="bias is given twice"):
        write_part(store, 1, "w", [("bias", torch.zeros(1)), ("bias", torch.zeros(1))])


def test_a_missing_unit_is_named(store: Store) -> None:
    files = write_part(store, 1, "w", [("unit.0.master", torch.zeros(48))])
    seal(store, build_manifest(1, files))

    with pytest.raises(CheckpointError, match=r"11 unit arrays .* unit\.0\.exp_avg has shape none"):
        open_verified(store, 1).check_complete(build_inventory())


def test_a_checkpoint_opens_by_its_own_uri(store: Store) -> None:
    write_checkpoint(store, 200)
    uri = open_checkpoint(store, 200).uri

    assert open_checkpoint_at(uri).manifest.step == 200
    assert open_checkpoint_at(f"file://{uri}/").manifest.step == 200
    with pytest.raises(CheckpointError, match="not a checkpoint directory"):
        open_checkpoint_at(store.uri)


def test_a_deleted_checkpoint_is_gone_and_the_others_stay(store: Store) -> None:
    for step in (100, 200, 300):
        write_checkpoint(store, step)

    delete_checkpoint(store, 200)
    delete_checkpoint(store, 200)

    assert find_checkpoints(store) == [100, 300]
    assert set(store.entries()) == {"step-00000100", "step-00000300"}


def test_an_unknown_step_lists_the_known_ones(store: Store) -> None:
    write_checkpoint(store, 100)

    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; it has \[100\]"):
        open_verified(store, 7)


def test_rows_survive_the_trip_as_plain_data(store: Store) -> None:
    (plain,) = write_part(store, 1, "w", [("bias", torch.zeros(2, 3))])

    assert file_row(plain).to_plain() == plain | {
        "tensors": [{**plain["tensors"][0], "shape": (2, 3)}]
    }


def test_a_failed_write_leaves_no_object_behind_either(tmp_path: Path) -> None:
    remote = through_streams(tmp_path / "bucket")

    def fail_half_way() -> None:
        with remote.writing("step-00000001/w.safetensors", 8192) as write:
            write(memoryview(bytearray(4096)))
            raise RuntimeError("snapshot lost")

    with pytest.raises(RuntimeError, match="snapshot lost"):
        fail_half_way()

    assert remote.entries("step-00000001") == {}
