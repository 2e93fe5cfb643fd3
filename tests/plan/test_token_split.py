import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticmoe.plan.dispatch import count_travelling, split_tokens


@st.composite
def routings(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    num_experts, workers = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    tokens_EW = random.integers(
        0, draw(st.sampled_from([1, 2, 5, 1000])) + 1, (num_experts, workers)
    )
    holders_EW = random.random((num_experts, workers)) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    holders_EW[np.arange(num_experts), random.integers(0, workers, num_experts)] = True
    return tokens_EW, holders_EW


@settings(max_examples=300, deadline=None)
@given(routings())
def test_tokens_are_conserved_stay_where_they_can_and_go_only_to_holders(
    routing: tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]],
) -> None:
    tokens_EW, holders_EW = routing

    flow_EWW = split_tokens(tokens_EW, holders_EW)

    assert flow_EWW.dtype == np.int64
    assert (flow_EWW >= 0).all()
    assert (flow_EWW.sum(axis=2) == tokens_EW).all()
    assert not flow_EWW.sum(axis=1)[~holders_EW].any()
    local_EW = np.einsum("eww->ew", flow_EWW)
    assert (local_EW[holders_EW] == tokens_EW[holders_EW]).all()


@settings(max_examples=200, deadline=None)
@given(routings())
def test_travelling_tokens_never_lift_a_holder_above_the_larger_of_its_own_and_an_equal_share(
    routing: tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]],
) -> None:
    tokens_EW, holders_EW = routing

    load_EW = split_tokens(tokens_EW, holders_EW).sum(axis=1)

    share_E1 = tokens_EW.sum(axis=1, keepdims=True) / holders_EW.sum(axis=1, keepdims=True)
    own_EW = np.where(holders_EW, tokens_EW, 0)
    assert (load_EW <= np.maximum(own_EW, np.ceil(share_E1)) * holders_EW).all()


@settings(max_examples=50, deadline=None)
@given(routings())
def test_the_same_counts_give_the_same_split(
    routing: tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]],
) -> None:
    assert (split_tokens(*routing) == split_tokens(*routing)).all()


@settings(max_examples=200, deadline=None)
@given(routings())
def test_what_travels_can_be_counted_without_saying_from_whom_to_whom(
    routing: tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]],
) -> None:
    flow_EWW = split_tokens(*routing)
    worker_W = np.arange(flow_EWW.shape[1])
    flow_EWW[:, worker_W, worker_W] = 0

    away_EW, arriving_EW = count_travelling(*routing)

    assert (away_EW == flow_EWW.sum(axis=2)).all()
    assert (arriving_EW == flow_EWW.sum(axis=1)).all()


def test_nothing_travels_when_all_hold_all() -> None:
    tokens_EW = np.array([[5, 0, 2], [1, 1, 9]])

    flow_EWW = split_tokens(tokens_EW, np.ones((2, 3), dtype=np.bool_))

    assert (flow_EWW == tokens_EW[:, :, None] * np.eye(3, dtype=np.int64)).all()


def test_everything_goes_to_the_only_holder() -> None:
    flow_EWW = split_tokens(np.array([[5, 0, 2]]), np.array([[False, True, False]]))

    assert flow_EWW.tolist() == [[[0, 5, 0], [0, 0, 0], [0, 2, 0]]]


def test_tokens_without_a_holder_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"experts \[1\] have tokens but no holder"):
        split_tokens(np.array([[1, 1], [1, 0]]), np.array([[True, True], [False, False]]))


def test_arrays_of_different_shapes_are_an_error() -> None:
    with pytest.raises(ValueError, match="holders are"):
        split_tokens(np.zeros((2, 2), dtype=np.int64), np.ones((2, 3), dtype=np.bool_))
