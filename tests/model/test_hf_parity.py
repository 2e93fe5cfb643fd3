"""Logits against transformers, on import and again after export."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_cases import Whole, build_whole, tiny_job, tiny_model
from torch import Tensor

from elasticmoe.errors import CheckpointError, SpecError
from elasticmoe.model.hf import (
    HFCheckpoint,
    bias_from_hf,
    parameters_from_hf,
    spec_from_hf,
    to_hf,
    write_hf,
)
from elasticmoe.spec.model import MoESpec

IDS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
DEEPSEEK: dict[str, Any] = {
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "deepseek": (transformers.DeepseekV3Config, DEEPSEEK),
    "deepseek with yarn and compressed queries": (
        transformers.DeepseekV3Config,
        DEEPSEEK | {"rope_parameters": YARN, "q_lora_rank": 24},
    ),
    "deepseek with halves, bias and one group": (
        transformers.DeepseekV3Config,
        DEEPSEEK
        | {"rope_interleave": False, "attention_bias": True, "n_group": 1, "topk_group": 1}
        | {"q_lora_rank": 24, "norm_topk_prob": False, "tie_word_embeddings": True},
    ),
    "qwen3 with a dense layer": (
        transformers.Qwen3MoeConfig,
        {"intermediate_size": 48, "moe_intermediate_size": 16, "num_experts": 8, "head_dim": 16}
        | {"num_key_value_heads": 2, "norm_topk_prob": True, "mlp_only_layers": [0]},
    ),
    "mixtral": (
        transformers.MixtralConfig,
        {"intermediate_size": 16, "num_local_experts": 8, "num_key_value_heads": 2},
    ),
    "olmoe": (transformers.OlmoeConfig, {"intermediate_size": 16, "num_experts": 8}),
}


@pytest.mark.parametrize("case", CASES)
def test_imported_random_checkpoint_gives_transformers_logits(case: str, tmp_path: Path) -> None:
    theirs = _random_model(case)
    theirs.save_pretrained(tmp_path)

    whole = _import(tmp_path)

    _assert_equal_logits(whole, theirs)


@pytest.mark.parametrize("case", CASES)
def test_exported_checkpoint_gives_our_logits_in_transformers(case: str, tmp_path: Path) -> None:
    _random_model(case).save_pretrained(tmp_path / "first")
    whole = _import(tmp_path / "first")

    _export(whole, tmp_path / "second")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "second", dtype=torch.float32
    )

    _assert_equal_logits(whole, theirs)


def test_mtp_modules_survive_export_and_import(tmp_path: Path) -> None:
    whole = build_whole(tiny_job(tiny_model(mtp_depth=2)), trains=False)
    whole.bias_LE.normal_()

    _export(whole, tmp_path)
    again = _import(tmp_path)

    assert again.job.model.mtp_depth == 2
    assert torch.equal(again.bias_LE, whole.bias_LE)
    for block, weights in whole.weights.items():
        assert torch.equal(again.weights[block], weights)


def test_mtp_module_predicts_what_transformers_module_predicts(tmp_path: Path) -> None:
    whole = build_whole(tiny_job(tiny_model(mtp_depth=1)), trains=False)
    _export(whole, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    module = _their_mtp_layer(theirs, tmp_path)
    ids = torch.randint(0, 64, (4, 14), generator=torch.Generator().manual_seed(1))

    ours = whole.stage(whole.wave(0, 4), ids, None).mtp_loss_sums[0]

    with torch.no_grad():
        hidden = theirs.model(ids[:, :12]).last_hidden_state
        positions = torch.arange(12)[None]
        out = module(
            theirs.model.embed_tokens(ids[:, 1:13]),
            hidden,
            theirs.model.rotary_emb(hidden, positions),
            torch.full((12, 12), -torch.inf).triu(1)[None, None],
            positions,
            None,
        )
        logits = theirs.lm_head(out)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 2:14].flatten(), reduction="sum"
    )
    assert ours == pytest.approx(float(expected), rel=1e-5)


def test_shards_are_cut_at_the_limit_and_indexed(tmp_path: Path) -> None:
    whole = build_whole(tiny_job(tiny_model()), trains=False)
    config, tensors = to_hf(whole.job.model, _reader(whole), whole.bias_LE, max_positions=64)

    files = write_hf(tmp_path, config, tensors, max_shard_bytes=20_000)

    index = json.loads(files[-1].read_text())
    shards = {path.name for path in files if path.suffix == ".safetensors"}
    assert len(shards) > 3
    assert set(index["weight_map"].values()) == shards
    assert all(path.stat().st_size < 24_000 for path in files)


def test_unknown_model_type_is_one_clear_error() -> None:
    with pytest.raises(SpecError, match="model_type 'llama' is not one of deepseek_v3"):
        spec_from_hf({"model_type": "llama"}, ())


def test_spec_that_no_family_computes_lists_every_reason() -> None:
    moe = MoESpec(num_experts=8, top_k=2, expert_hidden_size=16, score="softmax", router="mlp")
    model = tiny_model(moe=moe)

    with pytest.raises(SpecError) as caught:
        to_hf(model, lambda *_: torch.zeros(1), torch.zeros(3, 8), max_positions=8)

    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "model.moe.router",
        "model.moe.score",
        "model.moe.num_shared_experts > 0",
    ]


def test_directory_without_weights_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(CheckpointError, match=r"needs config\.json and"):
        HFCheckpoint(tmp_path)


def _random_model(case: str) -> Any:
    kind, fields = CASES[case]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**(COMMON | fields)))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("norm.weight", "layernorm.weight")):
            tensor.data.uniform_(0.5, 1.5)
        elif name.endswith("e_score_correction_bias"):
            tensor.data.normal_().sub_(1.0)
        elif name.endswith(".bias"):
            tensor.data.normal_()
    return model.eval()


def _import(directory: Path) -> Whole:
    checkpoint = HFCheckpoint(directory)
    model = spec_from_hf(checkpoint.config, checkpoint.names)
    whole = build_whole(tiny_job(model), trains=False)
    for found in parameters_from_hf(model, checkpoint.read):
        target = whole.parameter(whole.weights, found.block, found.parameter)
        (target if found.expert < 0 else target[found.expert]).copy_(found.value)
    whole.bias_LE.copy_(bias_from_hf(model, checkpoint.read))
    return whole


def _reader(whole: Whole) -> Any:
    def read(block: str, parameter: str, expert: int) -> Tensor:
        found = whole.parameter(whole.weights, block, parameter)
        return found if expert < 0 else found[expert]

    return read


def _export(whole: Whole, directory: Path) -> None:
    config, tensors = to_hf(whole.job.model, _reader(whole), whole.bias_LE, max_positions=64)
    write_hf(directory, config, tensors)


def _their_mtp_layer(theirs: Any, directory: Path) -> Any:
    kinds = transformers.models.deepseek_v3.modeling_deepseek_v3
    layer = transformers.modeling_layers.MtpLayer(
        theirs.config, kinds.DeepseekV3DecoderLayer, kinds.DeepseekV3RMSNorm, 2
    )
    checkpoint = HFCheckpoint(directory)

    def read(name: str) -> Tensor:
        return checkpoint.read(f"model.layers.3.{name}")

    def experts(*projections: str) -> Tensor:
        names = [[f"mlp.experts.{e}.{p}_proj.weight" for p in projections] for e in range(8)]
        return torch.stack([torch.cat([read(name) for name in one]) for one in names])

    fused = {
        "mlp.experts.gate_up_proj": lambda: experts("gate", "up"),
        "mlp.experts.down_proj": lambda: experts("down"),
    }
    block = layer.mtp_block
    block.load_state_dict(
        {name: fused[name]() if name in fused else read(name) for name in block.state_dict()}
    )
    for name in ("enorm", "hnorm", "eh_proj"):
        getattr(layer, name).weight.data = read(f"{name}.weight")
    layer.post_norm.weight.data = read("shared_head.norm.weight")
    return layer.eval()


def _assert_equal_logits(whole: Whole, theirs: Any) -> None:
    ours = whole.stage.logits(IDS, whole.bias_LE)
    with torch.no_grad():
        expected = theirs(IDS).logits
    assert ours.std() > 0.1
    assert torch.allclose(ours, expected, rtol=0, atol=1e-5)
