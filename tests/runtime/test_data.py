"""Samples as a pure function of their number, and shards that are not what they should be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticmoe.errors import DataError
from elasticmoe.runtime.data import SampleReader
from elasticmoe.runtime.pack import pack
from elasticmoe.runtime.shuffle import permute, plan_interleave
from elasticmoe.spec.job import DataSpec, SourceSpec

SEQ_LEN = 8
SAMPLE_TOKENS = SEQ_LEN + 2


def pack_numbers(directory: Path, count: int, shard_tokens: int = 1 << 20) -> Path:
    """A corpus whose bytes count up, so that a sample shows where it starts."""
    source = directory.with_suffix(".bin")
    source.write_bytes((np.arange(count) % 251).astype(np.uint8).tobytes())
    pack([source], directory, holdout=0.0, shard_tokens=shard_tokens)
    return directory


def data_of(*directories: Path, weights: tuple[float, ...] = (1.0, 1.0), seed: int = 0) -> DataSpec:
    sources = tuple(
        SourceSpec(path=str(directory), weight=weight)
        for directory, weight in zip(directories, weights, strict=False)
    )
    return DataSpec(sources=sources, seq_len=SEQ_LEN, seed=seed)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return pack_numbers(tmp_path / "corpus", 400, shard_tokens=64)


def test_an_epoch_holds_every_window_exactly_once(corpus: Path) -> None:
    reader = SampleReader(data_of(corpus), 256, SAMPLE_TOKENS)

    samples = reader.read(0, reader.num_samples)

    assert reader.num_samples == (401 - SAMPLE_TOKENS) // SEQ_LEN + 1
    starts = sorted(samples[:, 0].tolist())
    assert starts == sorted(8 * window % 251 for window in range(reader.num_samples))
    assert (samples[:, 1:-1] == (samples[:, :1] + np.arange(1, 9)) % 251).all()


def test_samples_depend_on_their_numbers_alone(corpus: Path) -> None:
    whole = SampleReader(data_of(corpus), 256, SAMPLE_TOKENS).read(0, 210)
    other = SampleReader(data_of(corpus), 256, SAMPLE_TOKENS)

    backwards = [other.read(start, start + 7) for start in range(203, -1, -7)]

    assert np.array_equal(np.concatenate(backwards[::-1]), whole)


def test_epochs_and_seeds_have_different_orders(corpus: Path) -> None:
    reader = SampleReader(data_of(corpus), 256, SAMPLE_TOKENS)
    count = reader.num_samples

    first, second = reader.read(0, count), reader.read(count, 2 * count)
    reseeded = SampleReader(data_of(corpus, seed=1), 256, SAMPLE_TOKENS).read(0, count)

    assert not np.array_equal(first, second)
    assert not np.array_equal(first, reseeded)
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, second.tolist()))


def test_sources_take_turns_by_weight_and_repeat_nothing_within_their_epochs(
    tmp_path: Path,
) -> None:
    texts = {}
    for name, letter, count in (("a", b"a", 3000), ("b", b"b", 1000)):
        (tmp_path / f"{name}.txt").write_bytes(letter * 10 + b"0123456789" * (count // 10))
        pack([tmp_path / f"{name}.txt"], tmp_path / name, holdout=0.0)
        texts[name] = tmp_path / name
    data = data_of(texts["a"], texts["b"], weights=(3.0, 1.0))
    reader = SampleReader(data, 256, SAMPLE_TOKENS)

    sources, windows = reader._locate(np.arange(12_288))

    for source, share in ((0, 9216), (1, 3072)):
        mine = windows[sources == source]
        size = int(reader._windows[source])
        assert len(mine) == share
        for epoch in range(len(mine) // size):
            assert len(set(mine[epoch * size : (epoch + 1) * size].tolist())) == size
    gaps = np.diff(np.flatnonzero(sources == 1))
    assert gaps.min() == gaps.max() == 4


def test_heldout_windows_come_once_each_whatever_the_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_bytes(name.encode() * 1000)
        pack([tmp_path / f"{name}.txt"], tmp_path / name, holdout=0.2)
    data = data_of(tmp_path / "a", tmp_path / "b", weights=(1.0, 9.0))
    reader = SampleReader(data, 256, SAMPLE_TOKENS, split="heldout")

    samples = reader.read(0, reader.num_samples)

    assert sorted(samples[:, 0].tolist()) == [97] * 24 + [98] * 24
    with pytest.raises(ValueError, match="held-out"):
        reader.read(0, reader.num_samples + 1)


def test_the_digest_knows_contents_weights_and_length_but_no_place(
    tmp_path: Path, corpus: Path
) -> None:
    moved = Path(shutil.copytree(corpus, tmp_path / "moved"))
    other = pack_numbers(tmp_path / "other", 401)
    digest = SampleReader(data_of(corpus), 256, SAMPLE_TOKENS).digest

    assert SampleReader(data_of(moved), 256, SAMPLE_TOKENS).digest == digest
    assert SampleReader(data_of(other), 256, SAMPLE_TOKENS).digest != digest
    assert SampleReader(data_of(corpus, weights=(2.0,)), 256, SAMPLE_TOKENS).digest != digest


def test_a_token_outside_the_vocabulary_names_file_and_row(corpus: Path) -> None:
    reader = SampleReader(data_of(corpus), 250, SAMPLE_TOKENS)

    with pytest.raises(DataError) as error:
        reader.read(0, reader.num_samples)

    # token 250 is the first of its value, at row 250 - 3 * 64 of the fourth shard
    assert f"{corpus / 'train-00003.arrow'}, row 58: token 250 is outside" in str(error.value)


def rewrite(path: Path, dtype: pa.DataType, name: str) -> None:
    schema = pa.schema([pa.field(name, dtype, nullable=False)])
    with pa.ipc.new_file(path, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([1] * 64, dtype)], schema=schema))


def fix_size(path: Path) -> None:
    """Make `dataset.json` agree with a shard's new size."""
    known = json.loads((path.parent / "dataset.json").read_text())
    for shard in known["splits"]["train"]["shards"]:
        if shard["name"] == path.name:
            shard["num_bytes"] = path.stat().st_size
    (path.parent / "dataset.json").write_text(json.dumps(known))


def not_arrow(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def other_schema(path: Path) -> None:
    rewrite(path, pa.int32(), "ids")
    fix_size(path)


def short_batch(path: Path) -> None:
    schema = pa.schema([pa.field("tokens", pa.uint8(), nullable=False)])
    with pa.ipc.new_file(path, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([1], pa.uint8())], schema=schema))
    fix_size(path)


@pytest.mark.parametrize(
    "damage, message",
    [
        (Path.unlink, "rows 0 to 63: No such file"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:100]),
            r"about row \d+: the file has 100",
        ),
        (not_arrow, "row 0: not an Arrow file"),
        (other_schema, "row 0: its columns are ids: int32, not tokens: uint8"),
        (short_batch, "row 0: damaged|row 0: 1 tokens in a batch"),
    ],
)
def test_a_bad_shard_is_one_error_with_file_and_row(
    corpus: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(corpus / "train-00002.arrow")

    with pytest.raises(DataError, match=message) as error:
        SampleReader(data_of(corpus), 256, SAMPLE_TOKENS).read(0, 48)

    assert str(corpus / "train-00002.arrow") in str(error.value)


def test_a_directory_that_was_never_packed_says_how_to_pack(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="elasticmoe data pack"):
        SampleReader(data_of(tmp_path), 256, SAMPLE_TOKENS)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 7}', "\udcff"])
def test_a_damaged_description_is_one_error(corpus: Path, text: str) -> None:
    (corpus / "dataset.json").write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(DataError, match=r"dataset\.json is not a dataset description"):
        SampleReader(data_of(corpus), 256, SAMPLE_TOKENS)


def test_a_source_shorter_than_a_sample_says_how_short(tmp_path: Path) -> None:
    tiny = pack_numbers(tmp_path / "tiny", 5)

    with pytest.raises(DataError, match="6 train tokens, one sample needs 10"):
        SampleReader(data_of(tiny), 256, SAMPLE_TOKENS)


@settings(deadline=None)
@given(st.integers(1, 3000), st.text(max_size=4))
def test_a_permutation_hits_every_place_once(size: int, key: str) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_a_permutation_leaves_no_visible_order() -> None:
    size = 100_000

    places = permute(np.arange(size), size, "key")

    assert abs(np.corrcoef(np.arange(size), places)[0, 1]) < 0.02
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.02


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8))
def test_every_source_gets_its_share_of_the_pattern(weights: list[float]) -> None:
    pattern = plan_interleave(tuple(weights))

    shares = np.bincount(pattern.source_of_slot, minlength=len(weights)) / len(
        pattern.source_of_slot
    )

    assert (np.bincount(pattern.source_of_slot) == pattern.turns).all()
    assert np.abs(shares - np.array(weights) / sum(weights)).max() < 2e-3
