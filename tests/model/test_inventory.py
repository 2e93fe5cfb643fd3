from itertools import pairwise
from typing import Any

import pytest
import torch
from model_cases import MOE, build_whole, tiny_job, tiny_model

from elasticmoe.errors import SpecError
from elasticmoe.model.initialize import CHUNK_NUMEL, initial_unit
from elasticmoe.model.inventory import UNIT_NUMEL, build_inventory
from elasticmoe.plan.types import ALIGN, Inventory, Unit
from elasticmoe.spec.model import ModelSpec
from elasticmoe.spec.presets import deepseek_v3


def test_blocks_come_in_the_order_of_the_network() -> None:
    inventory = build_inventory(tiny_model(mtp_depth=2), seq_len=8)

    assert [block.name for block in inventory.blocks] == [
        "embedding",
        "layer.0",
        "layer.1",
        "layer.1.experts",
        "layer.2",
        "layer.2.experts",
        "head",
        "mtp.0",
        "mtp.0.experts",
        "mtp.1",
        "mtp.1.experts",
    ]
    assert [block.layer for block in inventory.blocks[:7]] == [-1, 0, 1, 1, 2, 2, -1]
    assert [block.index for block in inventory.blocks] == list(range(11))


def test_names_are_those_of_the_modules() -> None:
    whole = build_whole(tiny_job(tiny_model()))

    for block in whole.inventory.blocks:
        if not block.is_experts:
            module = whole.stage.get_submodule(block.name.replace(".", "_"))
            names = {name for name, _ in module.named_parameters()}
            assert {parameter.name for parameter in block.parameters} == names


@pytest.mark.parametrize(
    "changes",
    [{}, {"tied_embeddings": True}, {"vocab_size": 40_001}, {"hidden_size": 36, "mtp_depth": 0}],
)
def test_units_cover_every_block_once_and_are_aligned(changes: dict[str, Any]) -> None:
    inventory = build_inventory(tiny_model(**changes), seq_len=8)

    for block in inventory.blocks:
        units = inventory.units_of_block[block.index]
        if block.is_experts:
            assert [unit.expert for unit in units] == list(range(block.num_experts))
            assert {(u.offset, u.numel, u.decay_numel) for u in units} == {
                (0, block.numel, block.decay_numel)
            }
            continue
        ends = [0, *(unit.offset + unit.numel for unit in units)]
        assert [unit.offset for unit in units] == ends[:-1]
        assert ends[-1] == block.numel
        assert all(unit.numel <= UNIT_NUMEL and unit.numel % ALIGN == 0 for unit in units)
        assert sum(unit.decay_numel for unit in units) == block.decay_numel


def test_parameters_do_not_overlap_and_decay_comes_first() -> None:
    inventory = build_inventory(tiny_model(), seq_len=8)

    for block in inventory.blocks:
        end = 0
        for parameter in block.parameters:
            assert parameter.offset % ALIGN == 0
            assert end <= parameter.offset < end + ALIGN
            end = parameter.offset + parameter.numel
            assert parameter.decay == (parameter.offset < block.decay_numel)
            assert parameter.decay == (len(parameter.shape) > 1)


def test_tied_embeddings_leave_only_the_norm_in_the_head() -> None:
    head = build_inventory(tiny_model(tied_embeddings=True), seq_len=8).block_by_name["head"]

    assert [parameter.name for parameter in head.parameters] == ["norm.weight"]
    assert head.flops_per_token == 2 * 64 * 32


def test_deepseek_v3_has_its_published_size() -> None:
    model = ModelSpec(**_tuples(deepseek_v3()))

    inventory = build_inventory(model, seq_len=4096)

    main = sum(
        parameter.numel * max(block.num_experts, 1)
        for block in inventory.blocks
        if not block.name.startswith("mtp")
        for parameter in block.parameters
    )
    assert main / 1e9 == pytest.approx(671, abs=0.1)
    assert len(inventory.moe_blocks) == 58 + model.mtp_depth


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}


def _flat(inventory: Inventory, model: ModelSpec, block: int, cuts: list[int]) -> torch.Tensor:
    parts = [
        initial_unit(model, inventory, Unit(0, block, -1, start, end - start, 0), 7, torch.float32)
        for start, end in pairwise(cuts)
    ]
    return torch.cat(parts)


def test_first_weights_do_not_depend_on_how_blocks_are_cut() -> None:
    model = tiny_model(vocab_size=3 * CHUNK_NUMEL // 32 + 5)
    inventory = build_inventory(model, seq_len=8)
    numel = inventory.blocks[0].numel

    whole = _flat(inventory, model, 0, [0, numel])
    cut = _flat(inventory, model, 0, [0, 16, CHUNK_NUMEL - 32, CHUNK_NUMEL + 16, numel])

    assert torch.equal(whole, cut)
    assert float(whole.std()) == pytest.approx(model.init_std, rel=0.02)


def test_first_weights_differ_by_seed_block_parameter_and_expert() -> None:
    model = tiny_model()
    inventory = build_inventory(model, seq_len=8)
    units = {(inventory.blocks[u.block].name, u.expert): u for u in inventory.units}
    chosen = [units[key] for key in (("layer.1.experts", 0), ("layer.1.experts", 1))]
    chosen.append(units["layer.2.experts", 0])

    drawn = [initial_unit(model, inventory, unit, 0, torch.float32)[:64] for unit in chosen]
    drawn.append(initial_unit(model, inventory, chosen[0], 1, torch.float32)[:64])

    assert len({tuple(values.tolist()) for values in drawn}) == 4


def test_norms_start_at_one_biases_and_padding_at_zero() -> None:
    moe = MOE.model_copy(update={"expert": "user_parts:AffineExpert"})
    model = tiny_model(hidden_size=36, moe=moe)
    whole = build_whole(tiny_job(model))

    assert bool((whole.parameter(whole.weights, "head", "norm.weight") == 1).all())
    assert not whole.parameter(whole.weights, "layer.1.experts", "linear.bias").any()
    used = whole.inventory.block_by_name["head"].parameters[0].numel
    assert not whole.weights[whole.inventory.block_by_name["head"].index][used + 36 :].any()


@pytest.mark.parametrize(
    "path, problem",
    [
        ("swigloo", "is not a built-in name or package.module:Class"),
        ("user_parts:Missing", "cannot load 'user_parts:Missing'"),
        ("no_such_module:Expert", "cannot load"),
        ("user_parts:NotAnExpert", "is not a subclass of BaseExpert"),
    ],
)
def test_wrong_expert_class_is_one_clear_error(path: str, problem: str) -> None:
    moe = MOE.model_copy(update={"expert": path})

    with pytest.raises(SpecError, match=f"model.moe.expert: .*{problem}"):
        build_inventory(tiny_model(moe=moe), seq_len=8)
