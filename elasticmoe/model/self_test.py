"""A cheap check at start-up that this machine's gate and bias do what they must.

Wrong routing trains silently worse; the bugs that others shipped (scores masked with 0 instead of
-inf, weights taken from biased scores) show on a few hundred random tokens.

Shapes: T = tokens, E = experts, G = groups, K = experts per token.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elasticmoe.errors import ElasticMoEError
from elasticmoe.model.gate import Choice, choose
from elasticmoe.plan.bias import update_bias
from elasticmoe.spec.job import BalanceSpec
from elasticmoe.spec.model import MoESpec

_TOKENS: Final = 256
_TOLERATED_TOKENS: Final = 2
"""Sums of group scores may round differently in numpy, and flip a near tie."""
_TOLERATED_WEIGHT: Final = 1e-5
_MEAN_BIAS: Final = -2.0
"""Makes every biased sigmoid score negative, so that a mask of 0 would win."""


class SelfTestError(ElasticMoEError):
    """Gate or bias compute something else than they should: a broken build or machine."""

    code = "self_test_failed"


@cache
def check_gate_and_bias(
    moe: MoESpec,
    balance: BalanceSpec,
    device: torch.device,
    gate: Callable[[Tensor, Tensor, MoESpec], Choice] = choose,
) -> None:
    """Route random tokens with the job's gate, compare with numpy, and move the bias once.

    Raises:
        SelfTestError: says which property does not hold.
    """
    random = np.random.default_rng(0)
    logits_TE = random.standard_normal((_TOKENS, moe.num_experts), dtype=np.float32)
    bias_E = random.standard_normal(moe.num_experts, dtype=np.float32) + np.float32(_MEAN_BIAS)
    choice = gate(torch.from_numpy(logits_TE).to(device), torch.from_numpy(bias_E).to(device), moe)
    _check(choice.weights_TK.dtype is torch.float32, f"weights are {choice.weights_TK.dtype}")
    chosen_TK, weights_TK = choice.chosen_TK.cpu().numpy(), choice.weights_TK.cpu().numpy()
    counts_E = np.bincount(chosen_TK.ravel(), minlength=moe.num_experts)
    wanted = _TOKENS * moe.top_k
    _check(int(counts_E.sum()) == wanted, f"{counts_E.sum()} assignments instead of {wanted}")
    scores_TE = _scores(logits_TE, moe)
    expected_TK = _expected_choice(scores_TE + bias_E, moe)
    differ = int((np.sort(chosen_TK) != np.sort(expected_TK)).any(axis=1).sum())
    _check(differ <= _TOLERATED_TOKENS, f"{differ} of {_TOKENS} tokens chose the wrong experts")
    expected_weights_TK = np.take_along_axis(scores_TE, chosen_TK, axis=1)
    if moe.normalize_weights:
        expected_weights_TK /= expected_weights_TK.sum(axis=1, keepdims=True)
    worst = float(np.abs(expected_weights_TK * moe.routed_scaling - weights_TK).max())
    allowed = _TOLERATED_WEIGHT * moe.routed_scaling
    _check(worst <= allowed, f"weights are {worst} away from the unbiased scores")
    _check_bias(counts_E[None], balance)


def _scores(logits_TE: NDArray[Any], moe: MoESpec) -> NDArray[Any]:
    exact_TE = logits_TE.astype(np.float64)
    if moe.score == "sigmoid":
        return 1 / (1 + np.exp(-exact_TE))
    raised_TE = np.exp(exact_TE)
    return raised_TE / raised_TE.sum(axis=1, keepdims=True)


def _expected_choice(biased_TE: NDArray[Any], moe: MoESpec) -> NDArray[Any]:
    if moe.top_groups < moe.num_groups:
        grouped_TGE = biased_TE.reshape(_TOKENS, moe.num_groups, -1)
        score_TG = np.sort(grouped_TGE)[..., -moe.group_score_width :].sum(axis=-1)
        worst_TG = np.argsort(score_TG)[:, : moe.num_groups - moe.top_groups]
        np.put_along_axis(grouped_TGE, worst_TG[:, :, None], -np.inf, axis=1)
        biased_TE = grouped_TGE.reshape(_TOKENS, -1)
    return np.argsort(-biased_TE)[:, : moe.top_k]


def _check_bias(counts_LE: NDArray[np.int64], balance: BalanceSpec) -> None:
    if balance.mean_centered:
        return  # an expert below the mean may then move with those above it
    move_LE = update_bias(np.zeros(counts_LE.shape, dtype=np.float32), counts_LE, balance, step=0)
    wrong = int((np.sign(move_LE) * (counts_LE - counts_LE.mean()) > 0).sum())
    _check(wrong == 0, f"the bias of {wrong} experts moves towards more load")


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise SelfTestError(f"self-test of gate and bias failed: {problem}")
