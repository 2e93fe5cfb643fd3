"""Which worker of a stage computes which tokens of each expert.

Shapes: E = experts of a layer, W = workers of the stage.
"""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def split_tokens(tokens_EW: IntArray, holders_EW: BoolArray) -> IntArray:
    """Split each expert's tokens over the workers that hold it.

    A token whose worker holds the expert stays there. The others fill the holders up towards an
    equal share of the expert's tokens, in integers, by largest remainder with the lower worker
    first on ties. Sources and destinations are then matched in ascending order, which needs the
    fewest messages. Every worker that calls this with the same counts gets the same answer.

    Args:
        tokens_EW: tokens that chose each expert, by the worker they are on; [E, W].
        holders_EW: whether each worker holds each expert; [E, W].

    Returns:
        Tokens from source to destination, int64 [E, W source, W destination].

    Raises:
        ValueError: the shapes differ, or an expert with tokens has no holder.

    Source: after Lazarus, arXiv:2407.04656, algorithm 1, with tokens never leaving a holder.

    >>> split_tokens(np.array([[4, 2, 0]]), np.array([[False, True, True]])).tolist()
    [[[0, 1, 3], [0, 2, 0], [0, 0, 0]]]
    """
    if tokens_EW.shape != holders_EW.shape:
        raise ValueError(f"tokens are {tokens_EW.shape}, holders are {holders_EW.shape}")
    num_experts, num_workers = tokens_EW.shape
    flow_EWW = np.zeros((num_experts, num_workers, num_workers), dtype=np.int64)
    num_holders_E = holders_EW.sum(axis=1, dtype=np.int64)
    if bool((num_holders_E == 1).all()):
        flow_EWW[np.arange(num_experts), :, holders_EW.argmax(axis=1)] = tokens_EW
        return flow_EWW
    worker_W = np.arange(num_workers)
    flow_EWW[:, worker_W, worker_W] = np.where(holders_EW, tokens_EW, 0)
    away_EW, arriving_EW = count_travelling(tokens_EW, holders_EW)
    if away_EW.any():
        flow_EWW += _match(away_EW, arriving_EW)
    return flow_EWW


def count_travelling(tokens_EW: IntArray, holders_EW: BoolArray) -> tuple[IntArray, IntArray]:
    """Count the tokens that `split_tokens` sends elsewhere, without saying from whom to whom.

    Returns:
        Tokens that leave each worker, and that come to each worker, int64 [E, W] both.

    Raises:
        ValueError: an expert with tokens has no holder.
    """
    num_holders_E = holders_EW.sum(axis=1, dtype=np.int64)
    local_EW = np.where(holders_EW, tokens_EW, 0)
    away_EW = tokens_EW - local_EW
    if not away_EW.any():
        return away_EW, np.zeros_like(away_EW)
    orphans = np.flatnonzero((num_holders_E == 0) & (away_EW.sum(axis=1) > 0))
    if len(orphans):
        raise ValueError(f"experts {orphans.tolist()} have tokens but no holder")
    room_EW = tokens_EW.sum(axis=1)[:, None] - num_holders_E[:, None] * local_EW
    return away_EW, _share_out(away_EW.sum(axis=1), room_EW.clip(min=0) * holders_EW)


def _share_out(amount_E: IntArray, weight_EW: IntArray) -> IntArray:
    """Split each amount in proportion to its row of weights, by largest remainder."""
    scale_E1 = weight_EW.sum(axis=1, keepdims=True).clip(min=1)
    share_EW, rest_EW = np.divmod(amount_E[:, None] * weight_EW, scale_E1)
    missing_E = amount_E - share_EW.sum(axis=1)
    order_EW = np.argsort(-rest_EW, axis=1, kind="stable")
    place_EW = np.empty_like(order_EW)
    np.put_along_axis(place_EW, order_EW, np.arange(weight_EW.shape[1])[None, :], axis=1)
    shared_EW: IntArray = share_EW + (place_EW < missing_E[:, None])
    return shared_EW


def _match(leaving_EW: IntArray, arriving_EW: IntArray) -> IntArray:
    """Lay sources and destinations side by side; each pair exchanges what overlaps."""
    source_end_EW, target_end_EW = leaving_EW.cumsum(axis=1), arriving_EW.cumsum(axis=1)
    source_start_EW, target_start_EW = source_end_EW - leaving_EW, target_end_EW - arriving_EW
    end_EWW = np.minimum(source_end_EW[:, :, None], target_end_EW[:, None, :])
    start_EWW = np.maximum(source_start_EW[:, :, None], target_start_EW[:, None, :])
    overlap_EWW: IntArray = (end_EWW - start_EWW).clip(min=0)
    return overlap_EWW
