import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from elasticmoe.model.gate import choose, stable_top_k
from elasticmoe.spec.model import MoESpec

HIDDEN = 16


def _moe(**changes: object) -> MoESpec:
    fields = {
        "num_experts": 64,
        "top_k": 8,
        "expert_hidden_size": 8,
        "num_groups": 8,
        "top_groups": 4,
        "routed_scaling": 2.5,
    }
    return MoESpec(**(fields | changes))  # type: ignore[arg-type]


def _their_router(moe: MoESpec) -> DeepseekV3TopkRouter:
    config = DeepseekV3Config(
        hidden_size=HIDDEN,
        n_routed_experts=moe.num_experts,
        num_experts_per_tok=moe.top_k,
        n_group=moe.num_groups,
        topk_group=moe.top_groups,
        routed_scaling_factor=moe.routed_scaling,
    )
    return DeepseekV3TopkRouter(config)


def _by_expert(chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    order = chosen.argsort(dim=1)
    return chosen.gather(1, order), weights.gather(1, order)


def _tied(biased: Tensor) -> Tensor:
    return (biased.sort(dim=1).values.diff(dim=1) == 0).any(dim=1)


@torch.no_grad()
def test_gate_agrees_with_transformers_on_a_million_tokens() -> None:
    moe = _moe()
    random = torch.Generator().manual_seed(0)
    router = _their_router(moe)
    router.weight.data.normal_(generator=random)
    router.e_score_correction_bias.normal_(-0.3, 0.5, generator=random)
    compared = mismatches = 0
    worst = 0.0

    while compared < 1_000_000:
        tokens = torch.randn(2**16, HIDDEN, generator=random)
        logits, their_weights, their_chosen = router(tokens)
        ours = choose(logits, router.e_score_correction_bias, moe)
        clear = ~_tied(logits.sigmoid() + router.e_score_correction_bias)
        chosen, weights = _by_expert(ours.chosen_TK[clear], ours.weights_TK[clear])
        expected, expected_weights = _by_expert(their_chosen[clear], their_weights[clear])
        compared += int(clear.sum())
        mismatches += int((chosen != expected).sum())
        worst = max(worst, float((weights - expected_weights).abs().max()))

    assert bool((router.e_score_correction_bias < 0).any())
    assert mismatches == 0
    assert worst <= 1e-6


@torch.no_grad()
def test_gate_agrees_with_transformers_at_deepseek_v3_size() -> None:
    moe = _moe(num_experts=256)
    random = torch.Generator().manual_seed(1)
    router = _their_router(moe)
    router.weight.data.normal_(generator=random)
    router.e_score_correction_bias.normal_(-1.0, 0.3, generator=random)

    logits, their_weights, their_chosen = router(torch.randn(2**14, HIDDEN, generator=random))
    ours = choose(logits, router.e_score_correction_bias, moe)

    clear = ~_tied(logits.sigmoid() + router.e_score_correction_bias)
    chosen, weights = _by_expert(ours.chosen_TK[clear], ours.weights_TK[clear])
    expected, expected_weights = _by_expert(their_chosen[clear], their_weights[clear])
    assert int(clear.sum()) > 10_000
    assert torch.equal(chosen, expected)
    assert torch.allclose(weights, expected_weights, rtol=0, atol=1e-6)


def test_of_equal_scores_the_lowest_index_comes_first() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])

    chosen = stable_top_k(scores, 4)

    assert chosen.tolist() == [[1, 3, 5, 2], [0, 1, 2, 3]]


def test_ties_between_groups_go_to_the_first_group() -> None:
    moe = _moe(num_experts=8, num_groups=4, top_groups=2, top_k=2)

    choice = choose(torch.zeros(3, 8), torch.zeros(8), moe)

    assert choice.chosen_TK.tolist() == [[0, 1]] * 3


def test_very_negative_bias_never_lets_a_masked_expert_win() -> None:
    moe = _moe(num_experts=8, num_groups=4, top_groups=1, top_k=2)
    logits = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))

    choice = choose(logits, torch.full((8,), -5.0), moe)

    groups = choice.chosen_TK // 2
    assert torch.equal(groups[:, 0], groups[:, 1])


def test_bias_changes_the_choice_but_not_the_weights() -> None:
    moe = _moe(num_experts=4, num_groups=1, top_groups=1, top_k=1, normalize_weights=False)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])

    choice = choose(logits, torch.tensor([0.0, 0.0, 0.0, 9.0]), moe)

    assert choice.chosen_TK.tolist() == [[3]]
    assert choice.weights_TK.item() == pytest.approx(2.5 * logits.sigmoid()[0, 3].item())


def test_group_score_width_decides_which_group_wins() -> None:
    logits = torch.tensor([[3.0, -9.0, 2.0, 2.0]])
    one = _moe(num_experts=4, num_groups=2, top_groups=1, top_k=1, group_score_width=1)
    two = _moe(num_experts=4, num_groups=2, top_groups=1, top_k=1, group_score_width=2)

    first = choose(logits, torch.zeros(4), one).chosen_TK.item()
    second = choose(logits, torch.zeros(4), two).chosen_TK.item()

    assert (first, second) == (0, 2)


def test_softmax_gate_normalised_equals_softmax_over_the_chosen() -> None:
    moe = _moe(num_groups=1, top_groups=1, score="softmax", top_k=2, routed_scaling=1.0)
    logits = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))

    choice = choose(logits, torch.zeros(64), moe)

    chosen_logits, expected = logits.topk(2, dim=1)
    assert torch.equal(choice.chosen_TK, expected)
    assert torch.allclose(choice.weights_TK, chosen_logits.softmax(dim=1), atol=1e-6)
