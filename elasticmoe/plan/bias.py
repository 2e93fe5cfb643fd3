"""Aux-loss-free balancing: the selection bias follows the load of committed steps.

Shapes: L = MoE layers, E = experts.
"""

import numpy as np
from numpy.typing import NDArray

from elasticmoe.spec.job import BalanceSpec


def update_bias(
    bias_LE: NDArray[np.floating],
    tokens_LE: NDArray[np.int64],
    balance: BalanceSpec,
    step: int,
) -> NDArray[np.floating]:
    """Move each expert's selection bias towards equal load.

    Args:
        bias_LE: added to scores when choosing experts, never to their weights.
        tokens_LE: tokens that chose each expert in one whole step, all workers and waves.
        balance: rule, rates and bounds.
        step: the step whose tokens these are, counted from 0.

    Returns:
        The new bias, same dtype; the input is left alone.

    Raises:
        ValueError: the two arrays differ in shape.

    Source: Wang et al. 2024, arXiv:2408.15664 (sign update).

    >>> rule = BalanceSpec(bias="sign", bias_rate=0.5)
    >>> update_bias(np.zeros((1, 3)), np.array([[9, 3, 6]]), rule, step=0).tolist()
    [[-0.5, 0.5, 0.0]]
    """
    if bias_LE.shape != tokens_LE.shape:
        raise ValueError(f"bias is {bias_LE.shape}, tokens are {tokens_LE.shape}")
    frozen = balance.bias_freeze_step is not None and step >= balance.bias_freeze_step
    if balance.bias == "none" or frozen:
        return bias_LE.copy()
    # error * E, in whole numbers, so that its sign is exact
    excess_LE = tokens_LE.sum(axis=1, keepdims=True) - tokens_LE.shape[1] * tokens_LE
    if balance.bias == "magnitude":
        total_L1 = np.maximum(tokens_LE.sum(axis=1, keepdims=True), 1)
        move_LE = balance.bias_rate * (excess_LE / total_L1)
    else:
        move_LE = bias_rate(balance, step) * np.sign(excess_LE)
    if balance.mean_centered:
        move_LE = move_LE - move_LE.mean(axis=1, keepdims=True)
    moved_LE: NDArray[np.floating] = np.clip(
        bias_LE + move_LE, -balance.bias_limit, balance.bias_limit
    )
    return moved_LE.astype(bias_LE.dtype, copy=False)


def bias_rate(balance: BalanceSpec, step: int) -> float:
    """Size of one sign move at a step, in score units.

    >>> rates = {"bias_rate_start": 0.1, "bias_rate": 0.001, "bias_anneal_steps": 2}
    >>> rule = BalanceSpec(bias="annealed", **rates)
    >>> [round(bias_rate(rule, step), 6) for step in range(4)]
    [0.1, 0.01, 0.001, 0.001]
    """
    if balance.bias != "annealed" or not balance.bias_rate_start:
        return balance.bias_rate
    progress = min(step / balance.bias_anneal_steps, 1.0)
    ratio: float = (balance.bias_rate / balance.bias_rate_start) ** progress
    return balance.bias_rate_start * ratio
