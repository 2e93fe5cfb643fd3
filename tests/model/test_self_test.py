import pytest
import torch
from model_cases import MOE
from torch import Tensor

from elasticmoe.model.gate import Choice, choose
from elasticmoe.model.self_test import SelfTestError, check_gate_and_bias
from elasticmoe.spec.job import BalanceSpec
from elasticmoe.spec.model import MoESpec

CPU = torch.device("cpu")


def _masks_with_zero(logits_TE: Tensor, bias_E: Tensor, moe: MoESpec) -> Choice:
    right = choose(logits_TE, bias_E, moe)
    biased_TGE = (right.scores_TE + bias_E).unflatten(1, (moe.num_groups, -1))
    worst = biased_TGE.topk(2).values.sum(-1).topk(moe.top_groups, largest=False).indices
    masked = biased_TGE.scatter(1, worst[:, :, None].expand(-1, -1, biased_TGE.shape[2]), 0.0)
    return Choice(masked.flatten(1).topk(moe.top_k).indices, right.weights_TK, right.scores_TE)


def _weighs_with_bias(logits_TE: Tensor, bias_E: Tensor, moe: MoESpec) -> Choice:
    right = choose(logits_TE, bias_E, moe)
    weights = (right.scores_TE + bias_E).gather(1, right.chosen_TK)
    return Choice(right.chosen_TK, weights / weights.sum(1, keepdim=True), right.scores_TE)


@pytest.mark.parametrize("kind", ["none", "sign", "annealed", "magnitude"])
def test_healthy_gate_and_bias_pass(kind: str) -> None:
    check_gate_and_bias(MOE, BalanceSpec(bias=kind), CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_experts, top_k", [(6, 6), (1, 1), (256, 8)])
def test_softmax_gate_without_groups_passes(num_experts: int, top_k: int) -> None:
    moe = MoESpec(num_experts=num_experts, top_k=top_k, expert_hidden_size=4, score="softmax")

    check_gate_and_bias(moe, BalanceSpec(mean_centered=True), CPU)


def test_gate_that_masks_with_zero_is_caught() -> None:
    with pytest.raises(SelfTestError, match="tokens chose the wrong experts"):
        check_gate_and_bias(MOE, BalanceSpec(), CPU, gate=_masks_with_zero)


def test_gate_that_weighs_with_biased_scores_is_caught() -> None:
    with pytest.raises(SelfTestError, match="away from the unbiased scores"):
        check_gate_and_bias(MOE, BalanceSpec(), CPU, gate=_weighs_with_bias)
