import pytest

from elasticmoe.spec.model import ModelSpec
from elasticmoe.spec.presets import PRESETS


def model(name: str) -> ModelSpec:
    return ModelSpec.model_validate({**PRESETS[name](), "preset": name})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_complete_model(name: str) -> None:
    assert model(name).preset == name


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_made_anew_each_time(name: str) -> None:
    PRESETS[name]()["moe"]["top_k"] = 0

    assert PRESETS[name]()["moe"]["top_k"] > 0


def test_small_is_what_the_benchmarks_are_published_for() -> None:
    small = model("small")

    assert (small.num_layers, small.hidden_size, small.attention.num_heads) == (6, 256, 8)
    assert (small.moe.num_experts, small.moe.num_groups) == (16, 4)
    assert (small.moe.top_k, small.moe.top_groups, small.moe.num_shared_experts) == (4, 2, 1)
    assert (small.moe.expert_hidden_size, small.vocab_size) == (256, 256)
    assert small.num_moe_layers == 6


def test_deepseek_v3_has_the_published_number_of_parameters() -> None:
    v3 = model("deepseek-v3")
    attention, moe, width = v3.attention, v3.moe, v3.hidden_size
    assert attention.q_lora_rank
    assert attention.kv_lora_rank
    assert attention.qk_nope_head_dim
    assert attention.qk_rope_head_dim
    assert attention.v_head_dim

    heads, nope, rope = attention.num_heads, attention.qk_nope_head_dim, attention.qk_rope_head_dim
    per_attention = (
        width * attention.q_lora_rank
        + attention.q_lora_rank * heads * (nope + rope)
        + width * (attention.kv_lora_rank + rope)
        + attention.kv_lora_rank * heads * (nope + attention.v_head_dim)
        + heads * attention.v_head_dim * width
    )
    expert = 3 * width * moe.expert_hidden_size
    per_moe = (moe.num_experts + moe.num_shared_experts) * expert + moe.num_experts * width
    total = (
        v3.num_layers * per_attention
        + v3.first_dense_layers * 3 * width * v3.dense_hidden_size
        + (v3.num_layers - v3.first_dense_layers) * per_moe
        + 2 * v3.vocab_size * width
    )

    assert round(total / 1e9) == 671
