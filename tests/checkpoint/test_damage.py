"""Whatever happens to the bytes of a checkpoint is found, and an older one is used."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elasticmoe.checkpoint.read import newest_valid, open_checkpoint, open_verified
from elasticmoe.checkpoint.store import Store, open_store
from elasticmoe.errors import CheckpointError
from tests.checkpoint.small import write_checkpoint

FILES = ("g3-w0.safetensors", "g3-w1.safetensors", "manifest.json")


@pytest.fixture(scope="module")
def pristine() -> Iterator[Path]:
    """Two checkpoints, made once."""
    with tempfile.TemporaryDirectory() as directory:
        store = open_store(directory)
        write_checkpoint(store, 100)
        write_checkpoint(store, 200)
        yield Path(directory)


def damage(path: Path, kind: str, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    place %= len(data)
    if kind == "drop":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(data[:place])
    elif kind == "extend":
        path.write_bytes(data + b" " * (1 + place))
    else:
        data[place] ^= 1 << bit
        path.write_bytes(data)


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(FILES),
    kind=st.sampled_from(["drop", "truncate", "extend", "flip", "flip", "flip"]),
    place=st.integers(0, 1 << 20),
    bit=st.integers(0, 7),
)
def test_damage_to_any_file_is_found_and_the_older_checkpoint_used(
    pristine: Path, name: str, kind: str, place: int, bit: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, "copy")
        shutil.copytree(pristine, root)
        store = open_store(root)
        damage(root / "step-00000200" / name, kind, place, bit)

        newest, skipped = newest_valid(store)

        assert newest is not None
        assert newest.manifest.step == 100
        gone = (name, kind) == ("manifest.json", "drop")
        assert [bad.step for bad in skipped] == ([] if gone else [200])
        with pytest.raises(CheckpointError):
            open_verified(store, 200)


def test_a_damaged_array_is_refused_even_without_verifying_first(store: Store) -> None:
    manifest = write_checkpoint(store, 200)
    file = manifest.files[0]
    path = Path(store.root, "step-00000200", file.name)
    damage(path, "flip", file.tensors[1].offset, 0)

    checkpoint = open_checkpoint(store, 200)

    checkpoint.read(file.tensors[0].name)
    with pytest.raises(CheckpointError, match=f"{file.tensors[1].name} is damaged"):
        checkpoint.read(file.tensors[1].name)


def test_if_nothing_verifies_every_reason_is_given(store: Store) -> None:
    for step in (100, 200):
        write_checkpoint(store, step)
        damage(Path(store.root, f"step-{step:08d}", "g3-w1.safetensors"), "truncate", 50, 0)

    with pytest.raises(CheckpointError) as error:
        open_verified(store)

    assert "step 200" in str(error.value)
    assert "step 100" in str(error.value)
    assert "has 50 bytes" in str(error.value)
