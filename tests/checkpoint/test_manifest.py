"""The manifest's text, and what it refuses to continue."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elasticmoe.checkpoint.manifest import (
    Manifest,
    check_resumable,
    check_same_model,
    digest_inventory,
)
from elasticmoe.errors import CheckpointError
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data
from tests.checkpoint.small import build_inventory, build_manifest

FILE = {
    "name": "g0-w0.safetensors",
    "num_bytes": 72,
    "header_bytes": 64,
    "header_hash": "aa",
    "tensors": [
        {
            "name": "bias",
            "dtype": "F64",
            "shape": [1],
            "offset": 64,
            "num_bytes": 8,
            "hash": "bb",
        }
    ],
}


def build_job(*overrides: str) -> JobSpec:
    data = {
        "version": 1,
        "name": "test",
        "model": {"preset": "quickstart"},
        "data": {"sources": [{"path": "data/text"}], "seq_len": 64},
        "batch": {"global_samples": 8},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"steps": 10},
        "workers": {"replicas": 1, "min": 1, "max": 1},
        "storage": {"dir": "runs/test"},
    }
    return parse_data(data, overrides)


def manifest_of(job: JobSpec) -> Manifest:
    return build_manifest(200, [FILE], model=job.model.model_dump(mode="json"))


@given(st.floats(), st.integers(), st.text())
def test_a_manifest_survives_its_text_exactly(number: float, count: int, text: str) -> None:
    manifest = build_manifest(200, [FILE], state={"x": number, "n": [count], "t": {"u": text}})

    again = Manifest.from_text(manifest.to_text())

    assert again.files == manifest.files
    assert math.isnan(number) or again == manifest


@given(st.data())
def test_any_changed_character_of_a_manifest_is_noticed(data: st.DataObject) -> None:
    text = build_manifest(200, [FILE]).to_text()
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != text[place]))

    with pytest.raises(CheckpointError, match=r"damaged|format"):
        Manifest.from_text(text[:place] + other + text[place + 1 :])


def test_a_manifest_of_a_newer_format_names_both_formats() -> None:
    text = build_manifest(200, [FILE], format=2).to_text()

    with pytest.raises(CheckpointError, match="format 2, this version reads 1"):
        Manifest.from_text(text)


def test_the_same_job_may_resume() -> None:
    job = build_job()

    check_resumable(manifest_of(job), job, "text", "cut")


def test_a_changed_model_is_refused_with_each_field_and_both_values() -> None:
    saved = manifest_of(build_job())
    job = build_job("model.mtp_depth=2", "model.attention.rope_theta=5.0")

    with pytest.raises(CheckpointError) as error:
        check_resumable(saved, job, "text")

    assert "model.mtp_depth: the checkpoint has 1, the job asks for 2" in str(error.value)
    assert "model.attention.rope_theta: the checkpoint has 10000.0" in str(error.value)
    assert "hidden_size" not in str(error.value)


def test_a_field_that_only_one_model_has_is_a_difference() -> None:
    with pytest.raises(CheckpointError, match=r"model\.x: the checkpoint has nothing, .* 1"):
        check_same_model({}, {"x": 1})


def test_recomputing_other_layers_is_the_same_model() -> None:
    job = build_job()

    check_resumable(manifest_of(job), build_job("model.recompute_layers=[0, 1]"), "text")


@pytest.mark.parametrize(
    "overrides, data, message",
    [
        ((), "other", "the training data changed"),
        (("data.seed=5",), "text", r"data\.seed 0, the job asks for 5"),
        (("batch.global_samples=16",), "text", r"global_samples 8, the job asks for 16"),
    ],
)
def test_changed_samples_are_refused(overrides: tuple[str, ...], data: str, message: str) -> None:
    saved = manifest_of(build_job())

    with pytest.raises(CheckpointError, match=message):
        check_resumable(saved, build_job(*overrides), data)


def test_units_cut_by_another_version_are_refused() -> None:
    job = build_job()

    with pytest.raises(CheckpointError, match="other units"):
        check_resumable(manifest_of(job), job, "text", "cut differently")


def test_imported_weights_fit_any_data_and_batch() -> None:
    job = build_job()
    imported = build_manifest(
        0, [], model=job.model.model_dump(mode="json"), data="", global_samples=0
    )

    check_resumable(imported, job, "anything")


def test_the_inventory_digest_ignores_costs_but_not_cuts() -> None:
    inventory = build_inventory()
    dense, experts = inventory.blocks
    dearer = type(dense)(
        **{name: getattr(dense, name) for name in dense.__slots__} | {"flops_per_token": 9.0}
    )

    assert digest_inventory(type(inventory)((dearer, experts), inventory.units)) == (
        digest_inventory(inventory)
    )
    assert digest_inventory(type(inventory)(inventory.blocks, inventory.units[:-1])) != (
        digest_inventory(inventory)
    )
