from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from untrained import build_job, write_untrained

from elasticmoe.errors import CheckpointError
from elasticmoe.plan.types import Unit
from elasticmoe.report.evaluate import bits_per_byte, evaluate, read_heldout, sample_text
from elasticmoe.report.whole_model import WholeModel
from elasticmoe.runtime.tokenizer import ByteTokenizer


@pytest.fixture
def model(tmp_path: Path) -> WholeModel:
    job = build_job(tmp_path)
    return WholeModel(write_untrained(job), seq_len=job.data.seq_len)


def test_an_untrained_model_needs_about_eight_bits_for_a_byte(tmp_path: Path) -> None:
    job = build_job(tmp_path)

    evaluation = evaluate(job, write_untrained(job))

    assert evaluation.bits_per_byte == pytest.approx(8.0, abs=0.3)
    assert evaluation.order2_bits_per_byte is not None
    assert evaluation.order2_bits_per_byte < 1.0  # one sentence, repeated
    assert evaluation.tokens > 0
    assert evaluation.tokens % job.data.seq_len == 0
    assert evaluation.sample.startswith("def ")


def test_a_score_does_not_depend_on_the_split_into_batches(
    tmp_path: Path, model: WholeModel
) -> None:
    heldout = read_heldout(build_job(tmp_path))
    assert len(heldout) > 2

    whole = bits_per_byte(model, heldout, ByteTokenizer())
    pieces = [bits_per_byte(model, row[None], ByteTokenizer()) for row in heldout]

    assert whole == pytest.approx(float(np.mean(pieces)), rel=1e-5)


def test_a_model_that_was_trained_to_infinity_is_an_error_and_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(model: Any, inventory: Any, unit: Unit, *args: Any) -> torch.Tensor:
        return torch.full((unit.numel,), float("inf"))

    monkeypatch.setattr("untrained.initial_unit", infinite)
    job = build_job(tmp_path)
    checkpoint = write_untrained(job)

    with pytest.raises(CheckpointError, match=r"is not finite\. Take an earlier checkpoint"):
        evaluate(job, checkpoint)
    whole = WholeModel(checkpoint, seq_len=job.data.seq_len)
    with pytest.raises(CheckpointError, match="is not finite"):
        sample_text(whole, ByteTokenizer(), "the ")


def test_held_out_samples_are_bounded(tmp_path: Path) -> None:
    job = build_job(tmp_path)

    assert len(read_heldout(job, max_tokens=3 * job.data.seq_len)) == 3


def test_the_same_seed_writes_the_same_text_and_another_one_another(model: WholeModel) -> None:
    def written(seed: int) -> str:
        return sample_text(model, ByteTokenizer(), "the ", num_tokens=12, seed=seed)

    assert written(1) == written(1)
    assert written(1) != written(2)


def test_text_at_temperature_zero_is_the_likeliest(model: WholeModel) -> None:
    prompt = [10, 20, 30]

    first, second = model.generate(prompt, num_tokens=2, temperature=0.0, seed=5)

    logits_V = model.logits(torch.tensor([prompt]))[0, -1]
    assert first == int(logits_V.argmax())
    assert second == int(model.logits(torch.tensor([[*prompt, first]]))[0, -1].argmax())


def test_a_text_may_be_longer_than_what_the_model_sees(model: WholeModel) -> None:
    new = list(model.generate([1], num_tokens=2 * model.seq_len, temperature=1.0, seed=0))

    assert len(new) == 2 * model.seq_len
    assert all(0 <= token < 256 for token in new)


def test_an_empty_prompt_begins_a_new_document(model: WholeModel) -> None:
    text = sample_text(model, ByteTokenizer(), "", num_tokens=3)

    assert "\0" not in text[:1] or len(text) <= 3
