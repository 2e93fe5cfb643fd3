"""Auxiliary losses against their formulas, written out token by token."""

import pytest
import torch
from torch import Tensor

from elasticmoe.model.balance import auxiliary_loss
from elasticmoe.model.capacity import drop_beyond, expert_capacity, kept_counts
from elasticmoe.model.wave import SerialExchange, Wave
from elasticmoe.spec.job import BalanceSpec
from elasticmoe.spec.model import MoESpec

SAMPLES, POSITIONS, EXPERTS, TOP_K = 4, 6, 5, 2
MOE = MoESpec(num_experts=EXPERTS, top_k=TOP_K, expert_hidden_size=4)
STEP_TOKENS = 3 * SAMPLES * POSITIONS


def _logits(seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(SAMPLES * POSITIONS, EXPERTS, generator=random, dtype=torch.float64)


def _counts(chosen_TK: Tensor) -> Tensor:
    per_sample = chosen_TK.view(SAMPLES, -1)
    return torch.stack([torch.bincount(one, minlength=EXPERTS) for one in per_sample])


def _wave(counts: Tensor | None = None, index: int = 0, own: slice = slice(0, SAMPLES)) -> Wave:
    return Wave(
        index=index,
        first_sample=own.start,
        num_samples=own.stop - own.start,
        wave_samples=SAMPLES,
        step_tokens=STEP_TOKENS,
        num_waves=3,
        exchange=SerialExchange({}),
        bias_LE=torch.zeros(1, EXPERTS),
        earlier_counts_LE=torch.zeros(3, 1, EXPERTS, dtype=torch.int64)
        if counts is None
        else counts,
    )


def _loss(
    logits: Tensor, agreed: Tensor, balance: BalanceSpec, wave: Wave, window: int = SAMPLES
) -> float:
    loss = auxiliary_loss(
        logits,
        logits.sigmoid(),
        agreed,
        wave=wave,
        row=0,
        moe=MOE,
        balance=balance,
        window_samples=window,
    )
    assert loss is not None
    return float(loss)


def _by_formula(logits: Tensor, counts_E: Tensor) -> float:
    """alpha * sum_i f_i P_i over these tokens, with alpha = 1."""
    tokens = len(logits)
    scores = logits.sigmoid()
    shares = scores / scores.sum(dim=1, keepdim=True)
    total = 0.0
    for expert in range(EXPERTS):
        fraction = EXPERTS / (TOP_K * int(counts_E.sum()) / TOP_K) * float(counts_E[expert])
        total += fraction * float(shares[:, expert].sum()) / tokens
    return total


@pytest.mark.parametrize("window", [1, 2, 4])
def test_micro_batch_loss_is_the_mean_over_windows(window: int) -> None:
    logits = _logits()
    agreed = _counts(torch.rand(len(logits), EXPERTS).topk(TOP_K).indices)
    balance = BalanceSpec(loss="micro_batch", loss_weight=1.0)

    loss = _loss(logits, agreed, balance, _wave(), window)

    windows = [slice(first, first + window) for first in range(0, SAMPLES, window)]
    expected = sum(
        _by_formula(logits.view(SAMPLES, POSITIONS, -1)[one].flatten(0, 1), agreed[one].sum(dim=0))
        * window
        * POSITIONS
        for one in windows
    )
    assert loss == pytest.approx(expected / STEP_TOKENS, rel=1e-12)


def test_sequence_loss_counts_the_unbiased_choice_of_each_sample() -> None:
    logits = _logits()
    misleading = torch.ones(SAMPLES, EXPERTS, dtype=torch.int64)
    balance = BalanceSpec(loss="sequence", loss_weight=0.5)

    loss = _loss(logits, misleading, balance, _wave())

    counts = _counts(logits.topk(TOP_K).indices)
    per_sample = logits.view(SAMPLES, POSITIONS, -1)
    expected = sum(_by_formula(per_sample[s], counts[s]) * POSITIONS for s in range(SAMPLES))
    assert loss == pytest.approx(0.5 * expected / STEP_TOKENS, rel=1e-12)


def test_global_batch_loss_uses_the_counts_of_the_waves_so_far() -> None:
    logits = _logits()
    counts = torch.tensor([[[9, 1, 1, 1, 1]], [[2, 2, 2, 2, 2]], [[7, 7, 7, 7, 7]]])
    balance = BalanceSpec(loss="global_batch", loss_weight=1.0)

    loss = _loss(logits, torch.ones(SAMPLES, EXPERTS), balance, _wave(counts, index=1))

    expected = _by_formula(logits, torch.tensor([11, 3, 3, 3, 3])) * len(logits)
    assert loss == pytest.approx(expected / STEP_TOKENS, rel=1e-12)


@pytest.mark.parametrize("kind", ["micro_batch", "sequence", "global_batch"])
def test_shares_of_two_workers_add_up_to_the_loss_of_one(kind: str) -> None:
    logits = _logits()
    agreed = _counts(logits.topk(TOP_K).indices)
    counts = agreed.sum(dim=0).expand(3, 1, EXPERTS)
    balance = BalanceSpec(loss=kind, loss_weight=1.0, z_loss_weight=0.1)  # type: ignore[arg-type]
    cut = 1 * POSITIONS

    whole = _loss(logits, agreed, balance, _wave(counts))
    first = _loss(logits[:cut], agreed, balance, _wave(counts, own=slice(0, 1)))
    second = _loss(logits[cut:], agreed, balance, _wave(counts, own=slice(1, SAMPLES)))
    nobody = _loss(logits[:0], agreed, balance, _wave(counts, own=slice(2, 2)))

    assert nobody == 0.0
    assert first + second == pytest.approx(whole, rel=1e-12)


def test_z_loss_is_the_mean_squared_log_partition() -> None:
    logits = _logits()

    loss = _loss(logits, torch.ones(4, 5), BalanceSpec(z_loss_weight=0.25), _wave())

    expected = sum(float(row.exp().sum().log()) ** 2 for row in logits)
    assert loss == pytest.approx(0.25 * expected / STEP_TOKENS, rel=1e-12)


def test_even_load_has_loss_one_per_token() -> None:
    logits = torch.zeros(SAMPLES * POSITIONS, EXPERTS, dtype=torch.float64)
    even = torch.full((SAMPLES, EXPERTS), 7)

    loss = _loss(logits, even, BalanceSpec(loss="micro_batch", loss_weight=1.0), _wave())

    assert loss == pytest.approx(len(logits) / STEP_TOKENS, rel=1e-12)


def test_room_goes_to_the_earlier_samples_of_a_window() -> None:
    counts_NE = torch.tensor([[3, 0], [2, 4], [5, 1], [0, 9]])

    kept_NE = kept_counts(counts_NE, window_samples=2, capacity=4)

    assert kept_NE.tolist() == [[3, 0], [1, 4], [4, 1], [0, 3]]


def test_within_a_sample_the_later_positions_are_dropped() -> None:
    chosen = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0]])  # two samples of two positions
    kept_SE = torch.tensor([[1, 2], [2, 0]])

    left = drop_beyond(chosen, kept_SE)

    assert left.tolist() == [[0, 1], [-1, 1], [-1, 0], [-1, 0]]


def test_drops_do_not_depend_on_who_holds_which_sample() -> None:
    chosen = torch.rand(SAMPLES * POSITIONS, EXPERTS).topk(TOP_K).indices
    room = expert_capacity(0.7, TOP_K, 2 * POSITIONS, EXPERTS)
    kept_NE = kept_counts(_counts(chosen), window_samples=2, capacity=room)
    cut = 3 * POSITIONS

    whole = drop_beyond(chosen, kept_NE)
    parts = [drop_beyond(chosen[:cut], kept_NE[:3]), drop_beyond(chosen[cut:], kept_NE[3:])]

    assert bool((whole < 0).any())
    assert torch.equal(whole, torch.cat(parts))
    assert int((whole >= 0).sum()) == int(kept_NE.sum())
