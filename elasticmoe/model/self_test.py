"""A cheap check at start-up that this machine's gate and bias do what they must.

Wrong routing trains silently worse; the bugs that others shipped (scores masked with 0 instead of
-inf, weights taken from biased scores) show on a few hundred random tokens.
"""

import numpy as np
import torch

from elasticmoe.errors import ElasticMoEError
from elasticmoe.model.gate import choose, limit_to_groups
from elasticmoe.plan.bias import update_bias
from elasticmoe.spec.job import BalanceSpec
from elasticmoe.spec.model import MoESpec

_TOKENS = 256


class SelfTestError(ElasticMoEError):
    """Gate or bias compute something else than they should: a broken build or machine."""

    code = "self_test_failed"


def check_gate_and_bias(moe: MoESpec, balance: BalanceSpec, device: torch.device) -> None:
    """Route random tokens with the job's gate and move its bias once.

    Raises:
        SelfTestError: says which property does not hold.
    """
    random = np.random.default_rng(0)
    shape = (_TOKENS, moe.num_experts)
    logits = torch.from_numpy(random.standard_normal(shape, dtype=np.float32)).to(device)
    lowest = torch.full((moe.num_experts,), -2.0, device=device)
    bias = lowest + torch.from_numpy(random.standard_normal(moe.num_experts, dtype=np.float32)).to(
        device
    )
    choice = choose(logits, bias, moe)
    _check(choice.weights_TK.dtype is torch.float32, f"weights are {choice.weights_TK.dtype}")
    counts = torch.bincount(choice.chosen_TK.flatten(), minlength=moe.num_experts)
    wanted = _TOKENS * moe.top_k
    _check(int(counts.sum()) == wanted, f"{int(counts.sum())} assignments instead of {wanted}")
    twins = int((choice.chosen_TK.sort(dim=1).values.diff(dim=1) == 0).sum())
    _check(twins == 0, f"{twins} tokens chose an expert twice")
    allowed = limit_to_groups(choice.scores_TE + bias, moe).gather(1, choice.chosen_TK)
    _check(bool(allowed.isfinite().all()), "experts outside a token's best groups were chosen")
    weights = choice.scores_TE.gather(1, choice.chosen_TK)
    if moe.normalize_weights:
        weights = weights / weights.sum(dim=1, keepdim=True)
    worst = float((weights * moe.routed_scaling - choice.weights_TK).abs().max())
    _check(worst < 1e-5, f"weights differ from unbiased scores by {worst}")
    _check_bias(counts.cpu().numpy()[None], balance)


def _check_bias(counts_LE: np.ndarray, balance: BalanceSpec) -> None:
    before = np.zeros(counts_LE.shape, dtype=np.float32)
    move = update_bias(before, counts_LE, balance, step=0) - before
    if balance.bias == "none" or balance.mean_centered or balance.bias_freeze_step == 0:
        return
    wrong = int((np.sign(move) * (counts_LE - counts_LE.mean()) > 0).sum())
    _check(wrong == 0, f"the bias of {wrong} experts moves towards more load")


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise SelfTestError(f"self-test of gate and bias failed: {problem}")
