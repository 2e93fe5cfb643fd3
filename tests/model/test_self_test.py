import pytest
import torch
from model_cases import MOE

from elasticmoe.model.self_test import check_gate_and_bias
from elasticmoe.spec.job import BalanceSpec
from elasticmoe.spec.model import MoESpec

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["none", "sign", "annealed", "magnitude"])
def test_healthy_gate_and_bias_pass(kind: str) -> None:
    check_gate_and_bias(MOE, BalanceSpec(bias=kind), CPU)  # type: ignore[arg-type]


def test_softmax_gate_without_groups_passes() -> None:
    moe = MoESpec(num_experts=6, top_k=6, expert_hidden_size=4, score="softmax")

    check_gate_and_bias(moe, BalanceSpec(mean_centered=True), CPU)
