import numpy as np
import pytest

from elasticmoe.plan.bias import bias_rate, update_bias
from elasticmoe.spec.job import BalanceSpec

TOKENS = np.array([[8, 2, 2], [4, 4, 4]])
ZERO = np.zeros((2, 3), dtype=np.float32)


def test_sign_rule_moves_every_expert_by_the_rate_and_balanced_ones_not() -> None:
    moved = update_bias(ZERO, TOKENS, BalanceSpec(bias="sign", bias_rate=0.5), step=0)

    assert moved.tolist() == [[-0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]
    assert moved.dtype == np.float32


def test_mean_centred_update_keeps_the_sum() -> None:
    rule = BalanceSpec(bias="sign", bias_rate=0.3, mean_centered=True)

    moved = update_bias(ZERO.astype(np.float64), TOKENS, rule, step=0)

    assert moved.sum(axis=1) == pytest.approx([0.0, 0.0])
    assert moved[0].tolist() == pytest.approx([-0.4, 0.2, 0.2])


def test_magnitude_rule_moves_by_the_relative_error() -> None:
    rule = BalanceSpec(bias="magnitude", bias_rate=0.1)

    moved = update_bias(ZERO.astype(np.float64), TOKENS, rule, step=0)

    assert moved[0].tolist() == pytest.approx([-0.1, 0.05, 0.05])


def test_annealed_rate_falls_geometrically_and_then_stays() -> None:
    rule = BalanceSpec(bias="annealed", bias_rate_start=0.04, bias_rate=0.01, bias_anneal_steps=2)

    rates = [bias_rate(rule, step) for step in range(4)]

    assert rates == pytest.approx([0.04, 0.02, 0.01, 0.01])


def test_bias_stays_within_its_limit() -> None:
    rule = BalanceSpec(bias="sign", bias_rate=0.5, bias_limit=0.2)

    moved = update_bias(ZERO.astype(np.float64), TOKENS, rule, step=0)

    assert np.abs(moved).max() == 0.2


def test_frozen_bias_does_not_move() -> None:
    rule = BalanceSpec(bias="sign", bias_rate=0.5, bias_freeze_step=3)

    before = update_bias(ZERO, TOKENS, rule, step=2)
    after = update_bias(ZERO, TOKENS, rule, step=3)

    assert before.any()
    assert not after.any()


def test_step_without_tokens_moves_nothing() -> None:
    for kind in ("sign", "magnitude"):
        rule = BalanceSpec(bias=kind)  # type: ignore[arg-type]
        assert not update_bias(ZERO, np.zeros((2, 3), dtype=np.int64), rule, step=0).any()


def test_arrays_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bias is \(2, 3\), tokens are \(1, 3\)"):
        update_bias(ZERO, TOKENS[:1], BalanceSpec(), step=0)
