"""Parameters to units and back."""

import pytest
import torch

from elasticmoe.checkpoint.read import Checkpoint, open_verified
from elasticmoe.checkpoint.store import Store
from elasticmoe.checkpoint.unpack import read_parameter, units_from_parameters
from elasticmoe.checkpoint.write import seal, write_part
from elasticmoe.errors import CheckpointError
from tests.checkpoint.small import build_inventory, build_manifest

Named = list[tuple[str, str, int, torch.Tensor]]


def build_parameters() -> Named:
    return [
        (block.name, parameter.name, expert, torch.randn(parameter.shape))
        for block in build_inventory().blocks
        for expert in (range(block.num_experts) if block.is_experts else [-1])
        for parameter in block.parameters
    ]


def imported(store: Store, parameters: Named) -> Checkpoint:
    files = write_part(store, 0, "import", units_from_parameters(build_inventory(), parameters))
    seal(store, build_manifest(0, files))
    return open_verified(store, 0)


def test_parameters_survive_the_trip_through_units(store: Store) -> None:
    parameters = build_parameters()

    checkpoint = imported(store, parameters[::-1])

    checkpoint.check_complete(build_inventory())
    for block, name, expert, tensor in parameters:
        assert torch.equal(
            read_parameter(checkpoint, build_inventory(), block, name, expert), tensor
        )


def test_moments_and_padding_of_imported_units_are_zero(store: Store) -> None:
    checkpoint = imported(store, build_parameters())

    master, exp_avg, exp_avg_sq = checkpoint.read_unit(0)

    assert not exp_avg.any()
    assert not exp_avg_sq.any()
    assert not master[20:32].any()  # between the end of `a` and the start of `b`


def test_units_come_as_soon_as_they_are_complete() -> None:
    parameters = build_parameters()
    given = []

    def one_by_one():  # type: ignore[no-untyped-def]
        for parameter in parameters:
            given.append(parameter[1])
            yield parameter

    name, _ = next(units_from_parameters(build_inventory(), one_by_one()))

    assert name == "unit.0.master"
    assert given == ["a", "b"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p[:-1], r"layer\.0\.experts\.down of expert 1 was not given"),
        (lambda p: [*p[:1], *p], r"layer\.0\.a was given twice"),
        (lambda p: [*p, ("layer.0", "c", -1, p[0][3])], r"no parameter layer\.0\.c"),
        (lambda p: [*p, ("layer.9", "a", -1, p[0][3])], r"no block 'layer\.9'"),
        (lambda p: [*p, ("layer.0.experts", "up", 2, p[0][3])], "no parameter .* of expert 2"),
        (lambda p: [("layer.0", "a", -1, torch.zeros(4, 5)), *p], r"shape \(4, 5\)"),
    ],
)
def test_parameters_that_do_not_fit_the_model_are_named(change, message: str) -> None:
    parameters = change(build_parameters())

    with pytest.raises(CheckpointError, match=message):
        list(units_from_parameters(build_inventory(), parameters))
