"""What a run was worth: held-out bits per byte, beside a yardstick, and a sample of its text.

Shapes: N = samples, T = tokens of a sample, V = vocabulary.
"""

from dataclasses import dataclass
from math import log
from typing import Final

import numpy as np
import torch
from torch.nn import functional as F

from elasticmoe.checkpoint.read import Checkpoint
from elasticmoe.report.whole_model import WholeModel
from elasticmoe.runtime.data import SampleArray, SampleReader
from elasticmoe.runtime.order2 import order2_bits_per_byte
from elasticmoe.runtime.tokenizer import Tokenizer, read_tokenizer
from elasticmoe.spec.job import JobSpec

MAX_TOKENS: Final = 1 << 16
"""Held-out tokens that are scored: a few seconds on two cores, and a standard error of about
0.01 bits per byte."""
BATCH_TOKENS: Final = 1 << 12
SAMPLE_TOKENS: Final = 240
SAMPLE_PROMPT: Final = "def "
SAMPLE_TEMPERATURE: Final = 0.7


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model on text that it was not trained on."""

    bits_per_byte: float
    order2_bits_per_byte: float | None
    """Of an order-2 byte model with counts of all training shards, on the same text; none:
    the corpus is not of bytes."""
    tokens: int
    """Held-out tokens scored."""
    sample: str
    """Generated text, prompt included."""


def evaluate(job: JobSpec, checkpoint: Checkpoint) -> Evaluation:
    """Score a checkpoint on the first held-out samples of the job's sources.

    Raises:
        CheckpointError: it is damaged, or its model's outputs are not finite.
        DataError: nothing is held out, or the data cannot be read.
    """
    model = WholeModel(checkpoint, seq_len=job.data.seq_len)
    tokenizer = read_tokenizer(job.data.sources[0].path)
    heldout_NT = read_heldout(job)
    is_bytes = tokenizer.vocab_size == 256
    order2 = None
    if is_bytes:
        sources = [source.path for source in job.data.sources]
        order2 = order2_bits_per_byte(sources, heldout_NT, job.data.seq_len)
    return Evaluation(
        bits_per_byte=bits_per_byte(model, heldout_NT, tokenizer),
        order2_bits_per_byte=order2,
        tokens=heldout_NT.shape[0] * job.data.seq_len,
        sample=sample_text(model, tokenizer, SAMPLE_PROMPT),
    )


def read_heldout(job: JobSpec, max_tokens: int = MAX_TOKENS) -> SampleArray:
    """The first held-out samples, [N, seq_len + 1].

    Raises:
        DataError: nothing is held out, or the data cannot be read.
    """
    seq_len = job.data.seq_len
    reader = SampleReader(job.data, job.model.vocab_size, seq_len + 1, split="heldout")
    return reader.read(0, min(reader.num_samples, max(1, max_tokens // seq_len)))


def bits_per_byte(model: WholeModel, heldout_NT: SampleArray, tokenizer: Tokenizer) -> float:
    """Cross entropy of the targets, in bits, over the bytes they stand for."""
    nats = 0.0
    step = max(1, BATCH_TOKENS // model.seq_len)
    for start in range(0, len(heldout_NT), step):
        ids_NT = torch.from_numpy(heldout_NT[start : start + step])
        logits_NTV = model.logits(ids_NT[:, :-1])
        targets = ids_NT[:, 1:].flatten().to(logits_NTV.device)
        nats += float(F.cross_entropy(logits_NTV.flatten(0, 1), targets, reduction="sum"))
    return nats / log(2) / num_bytes(heldout_NT[:, 1:], tokenizer)


def num_bytes(targets_NT: SampleArray, tokenizer: Tokenizer) -> int:
    """Bytes of text that tokens stand for."""
    if tokenizer.vocab_size == 256:
        return int(np.size(targets_NT))
    return sum(len(tokenizer.decode(row).encode()) for row in targets_NT.tolist())


def sample_text(
    model: WholeModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    num_tokens: int = SAMPLE_TOKENS,
    temperature: float = SAMPLE_TEMPERATURE,
    seed: int = 0,
) -> str:
    """Prompt and continuation as text; an empty prompt begins a new document."""
    (encoded,) = tokenizer.encode([prompt.encode()])
    ids = [int(token) for token in encoded] or [tokenizer.separator]
    new = model.generate(ids, num_tokens=num_tokens, temperature=temperature, seed=seed)
    return tokenizer.decode([*(ids if prompt else []), *new])
