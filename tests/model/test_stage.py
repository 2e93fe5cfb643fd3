import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from model_cases import MOE, Whole, build_whole, random_ids, tiny_job, tiny_model
from torch import Tensor

from elasticmoe.model.wave import StageOutput
from elasticmoe.spec.job import BalanceSpec
from elasticmoe.spec.model import AttentionSpec

GQA = AttentionSpec(kind="gqa", num_heads=4, num_kv_heads=2, qk_norm="head", bias=True)
FULL_NORM = AttentionSpec(kind="gqa", num_heads=4, head_dim=16, qk_norm="full")


def _step(whole: Whole, ids: Tensor) -> list[StageOutput]:
    """All waves, forward and backward."""
    outputs = []
    for index, part in enumerate(ids.chunk(whole.job.batch.num_waves)):
        outputs.append(whole.stage(whole.wave(index, len(part)), part, None))
        outputs[-1].loss.backward()
    return outputs


def _loss(whole: Whole, ids: Tensor) -> float:
    waves = ids.chunk(whole.job.batch.num_waves)
    with torch.no_grad():
        return sum(
            float(whole.stage(whole.wave(index, len(part)), part, None).loss)
            for index, part in enumerate(waves)
        )


def _gradients(model: Any, balance: BalanceSpec | None = None) -> tuple[float, dict[int, Tensor]]:
    job = tiny_job(model, balance=balance)
    whole = build_whole(job)
    outputs = _step(whole, random_ids(job, 8))
    return sum(float(out.loss.detach()) for out in outputs), whole.gradients


@pytest.mark.parametrize(
    "changes, balance",
    [
        ({}, BalanceSpec()),
        ({"mtp_depth": 3, "attention": GQA}, BalanceSpec(capacity_factor=0.8)),
        ({"mtp_depth": 0, "attention": FULL_NORM}, BalanceSpec(loss="micro_batch")),
        ({"tied_embeddings": True}, BalanceSpec(loss="sequence", z_loss_weight=0.1)),
        ({"moe": MOE.model_copy(update={"router": "mlp"})}, BalanceSpec(loss="global_batch")),
        ({"moe": MOE.model_copy(update={"router": "per_expert", "score": "softmax"})}, None),
    ],
)
def test_gradients_equal_finite_differences(
    changes: dict[str, Any], balance: BalanceSpec | None
) -> None:
    if balance is not None:
        balance = balance.model_copy(update={"loss_weight": 0.5})
    job = tiny_job(tiny_model(precision="fp64", **changes), balance=balance)
    whole = build_whole(job)
    ids = random_ids(job, 8)
    random = torch.Generator().manual_seed(3)
    directions = {
        block: torch.randn(weights.shape, dtype=torch.float64, generator=random)
        for block, weights in whole.weights.items()
    }

    _step(whole, ids)
    slope = sum(float((whole.gradients[b] * directions[b]).sum()) for b in directions)

    distance, losses = 1e-6, []
    for sign in (1, -2):
        for block, weights in whole.weights.items():
            weights.add_(directions[block], alpha=sign * distance)
        losses.append(_loss(whole, ids))
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * distance), rel=1e-6)


def test_grouped_experts_equal_the_loop_over_a_users_class() -> None:
    looped_moe = MOE.model_copy(update={"expert": "user_parts:LoopedSwiGLU"})
    for precision, tolerance in (("fp64", 1e-12), ("fp32", 1e-4), ("bf16", 6e-2)):
        loss, grouped = _gradients(tiny_model(precision=precision))

        expected_loss, looped = _gradients(tiny_model(precision=precision, moe=looped_moe))

        assert loss == pytest.approx(expected_loss, rel=tolerance)
        for block, gradient in grouped.items():
            worst = (gradient - looped[block]).abs().max()
            assert worst <= tolerance * looped[block].abs().max(), (precision, block)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_recomputed_layers_give_bitwise_equal_gradients(precision: str) -> None:
    balance = BalanceSpec(loss="global_batch", capacity_factor=1.0)
    loss, kept = _gradients(tiny_model(precision=precision), balance)

    again, recomputed = _gradients(
        tiny_model(precision=precision, recompute_layers=(0, 3)), balance
    )

    assert again == loss
    assert all(torch.equal(kept[block], recomputed[block]) for block in kept)


def test_bf16_gradients_add_up_in_fp32_near_those_of_fp32() -> None:
    loss, rough = _gradients(tiny_model(precision="bf16"))
    exact_loss, exact = _gradients(tiny_model())

    assert loss == pytest.approx(exact_loss, rel=2e-2)
    assert all(gradient.dtype is torch.float32 for gradient in rough.values())
    for block, gradient in rough.items():
        assert torch.cosine_similarity(gradient.flatten(), exact[block].flatten(), dim=0) > 0.9


class _Recorded:
    """An exchange that notes its calls; other workers hold the rest of the wave's samples."""

    def __init__(self, inner: Any, others: Tensor) -> None:
        self.inner, self.others, self.calls = inner, others, []

    def agree(self, block: int, counts_SE: Tensor) -> Tensor:
        self.calls.append(("agree", block))
        return torch.cat([counts_SE, self.others[len(counts_SE) :]])

    def run(self, block: int, tokens: Tensor, *rest: Any) -> Tensor:
        self.calls.append(("run", block))
        out = self.inner.run(block, tokens, *rest)
        if out.requires_grad:  # not in the first pass over a recomputed layer
            out.register_hook(lambda _: self.calls.append(("back", block)))
        return out


def test_worker_without_a_sample_makes_the_same_calls_and_has_zero_gradients() -> None:
    job = tiny_job(
        tiny_model(recompute_layers=(1, 2)),
        balance=BalanceSpec(loss="micro_batch", capacity_factor=1.0),
    )
    calls = {}
    for samples in (4, 0):
        whole = build_whole(job)
        exchange = _Recorded(whole.wave(0, 0).exchange, torch.ones(4, 8, dtype=torch.int64))

        output = whole.stage(whole.wave(0, samples, exchange), random_ids(job, samples), None)
        output.loss.backward()

        calls[samples] = exchange.calls
    assert calls[0] == calls[4]
    assert ("back", 3) in calls[0]
    assert float(output.loss.detach()) == 0.0
    assert not any(gradient.any() for gradient in whole.gradients.values())


def test_stages_chained_equal_the_whole_model() -> None:
    job = tiny_job(tiny_model(precision="fp64"), balance=BalanceSpec(loss="sequence"))
    whole, halves = build_whole(job), build_whole(job)
    names = [block.name for block in whole.inventory.blocks]
    cut = names.index("layer.2")
    ids = random_ids(job, 4)
    stages = [
        _stage_of(halves, tuple(range(cut)), is_first=True),
        _stage_of(halves, (0, *range(cut, len(names))), is_first=False),
    ]

    expected = whole.stage(whole.wave(0, 4), ids, None)
    expected.loss.backward()
    first = stages[0](halves.wave(0, 4), ids, None)
    assert first.hidden_STD is not None
    received = first.hidden_STD.detach().requires_grad_()
    second = stages[1](halves.wave(0, 4), ids, received)
    second.loss.backward()
    torch.autograd.backward([first.hidden_STD, first.loss], [received.grad, None])

    assert float((first.loss + second.loss).detach()) == pytest.approx(
        float(expected.loss.detach()), rel=1e-14
    )
    for block, gradient in whole.gradients.items():
        assert torch.allclose(gradient, halves.gradients[block], rtol=1e-10, atol=1e-13)


def _stage_of(whole: Whole, blocks: tuple[int, ...], *, is_first: bool) -> Any:
    stage = type(whole.stage)(
        whole.job,
        whole.inventory,
        blocks,
        {b.index: tuple(range(8)) for b in whole.inventory.moe_blocks},
        is_first=is_first,
        is_last=not is_first,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )
    for block in blocks:
        stage.bind(block, whole.weights[block], whole.gradients[block])
    return stage


def test_loads_count_every_assignment_and_every_drop() -> None:
    job = tiny_job(tiny_model(), balance=BalanceSpec(capacity_factor=0.5))
    whole = build_whole(job)
    wave = whole.wave(0, 4)

    whole.stage(wave, random_ids(job, 4), None)

    tokens = 4 * job.data.seq_len
    room = 0.5 * tokens * MOE.top_k  # of all experts together
    assert sorted(wave.loads) == [block.index for block in whole.inventory.moe_blocks]
    for row, load in enumerate(wave.loads[b.index] for b in whole.inventory.moe_blocks):
        assert int(load.counts_E.sum()) == tokens * MOE.top_k
        assert torch.equal(whole.counts[0, row], load.counts_E)
        assert load.dropped >= tokens * MOE.top_k - room
        assert 0 < load.confidence < tokens
        assert 0 < load.entropy < tokens * torch.tensor(8.0).log()


def test_losses_are_sums_that_match_the_loss() -> None:
    model = tiny_model(mtp_depth=2, precision="fp64")
    job = tiny_job(model, balance=BalanceSpec(z_loss_weight=0.01))
    whole = build_whole(job)

    out = whole.stage(whole.wave(0, 4), random_ids(job, 4), None)

    tokens = job.batch.global_samples * job.data.seq_len
    expected = out.lm_loss_sum / tokens + out.aux_loss
    expected += model.mtp_loss_weight / 2 * sum(out.mtp_loss_sums) / tokens
    assert out.aux_loss > 0
    assert float(out.loss.detach()) == pytest.approx(expected, rel=1e-12)


def test_logits_do_not_look_ahead_and_never_drop() -> None:
    job = tiny_job(tiny_model(), balance=BalanceSpec(capacity_factor=0.1))
    whole = build_whole(job, trains=False)
    ids = random_ids(job, 2)[:, :12]

    long = whole.stage.logits(ids, whole.bias_LE)
    short = whole.stage.logits(ids[:, :7], whole.bias_LE)

    assert torch.allclose(long[:, :7], short, atol=1e-5)


def test_users_router_and_combine_take_part() -> None:
    moe = MOE.model_copy(
        update={
            "router": "user_parts:ScaledRouter",
            "combine": "user_parts:LargestOutput",
            "expert": "user_parts:AffineExpert",
        }
    )
    loss, gradients = _gradients(tiny_model(moe=moe, precision="bf16"))

    assert math.isfinite(loss)
    assert all(gradient.any() for gradient in gradients.values())


def test_training_step_does_not_import_dynamo() -> None:
    program = (
        "import sys; sys.path.insert(0, 'tests/model')\n"
        "from model_cases import *\n"
        "job = tiny_job(tiny_model(recompute_layers=(0, 3), precision='bf16', attention=MLA))\n"
        "whole = build_whole(job)\n"
        "whole.stage(whole.wave(0, 4), random_ids(job, 4), None).loss.backward()\n"
        "print('torch._dynamo' in sys.modules)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout.strip() == "False", done.stderr


def test_a_wave_can_be_left_at_every_half_layer_and_leaves_nothing_behind() -> None:
    class LeftError(Exception):
        pass

    job = tiny_job(tiny_model(precision="fp64", mtp_depth=1))
    whole = build_whole(job)
    ids = random_ids(job, 8)
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == leave_at:
            raise LeftError

    leave_at = 0
    whole.stage.on_layer = count
    _step(whole, ids)
    expected = {block: gradient.clone() for block, gradient in whole.gradients.items()}
    total, layers = calls, job.model.num_layers
    # two halves a layer, and what goes into, through and out of the MTP module: each both ways
    assert total == job.batch.num_waves * 2 * (2 * layers + 4)

    for leave_at in range(1, total + 1):
        calls = 0
        with pytest.raises(LeftError):
            _step(whole, ids)
        assert calls == leave_at
        calls = -total
        whole.zero_gradients()
        _step(whole, ids)
        for block, gradient in whole.gradients.items():
            assert torch.equal(gradient, expected[block])
