"""A trained model, whole in one process: what evaluation and generation need.

Shapes: S = samples, T = tokens of a sample, V = vocabulary.
"""

import json
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from elasticmoe.checkpoint.read import Checkpoint
from elasticmoe.errors import CheckpointError
from elasticmoe.model.inventory import build_inventory
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.types import Member
from elasticmoe.runtime.memory import Weights
from elasticmoe.runtime.workplace import build_stage, slots_of
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data
from elasticmoe.spec.model import ModelSpec


class WholeModel:
    """All layers of a model with the weights of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, *, seq_len: int) -> None:
        """
        Args:
            checkpoint: verified as it is read.
            seq_len: longest sequence.

        Raises:
            CheckpointError: it is damaged, or does not fit its own model.
        """
        model = ModelSpec.model_validate_json(json.dumps(checkpoint.manifest.model))
        job = one_process_job(model, seq_len)
        self.seq_len, self.vocab_size = seq_len, model.vocab_size
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        inventory = build_inventory(model, seq_len)
        checkpoint.check_complete(inventory)
        plan = make_plan(job, inventory, (Member(worker=0, node="here", domain="here"),))
        slots = slots_of(plan, inventory, 0)
        weights = Weights(inventory, plan.stages[0].blocks, slots, model.precision, self._device)
        for unit in inventory.units:
            start = weights.offset(unit)
            master, _, _ = checkpoint.read_unit(unit.index)
            weights.flat[start : start + unit.numel].copy_(master)
        self._stage = build_stage(job, inventory, plan, 0, self._device)
        weights.bind(self._stage, train=False)
        self._bias_LE = checkpoint.read("bias").to(self._device)

    def logits(self, ids_ST: Tensor) -> Tensor:
        """Next-token logits, [S, T, V] in at least fp32; T is at most `seq_len`.

        Raises:
            CheckpointError: they are not finite; a job may end before the guard of steps says so.
        """
        logits_STV = self._stage.logits(ids_ST.to(self._device), self._bias_LE)
        if not bool(logits_STV.isfinite().all()):
            raise CheckpointError(
                "what this checkpoint's model computes is not finite. Take an earlier checkpoint, "
                "or train with a lower optimizer.learning_rate."
            )
        return logits_STV

    def generate(
        self, prompt: Sequence[int], *, num_tokens: int, temperature: float, seed: int
    ) -> Iterator[int]:
        """Continue a prompt, token by token; the model sees the last `seq_len` tokens.

        Args:
            prompt: at least one token.
            temperature: 0 takes the likeliest token.
        """
        generator = torch.Generator().manual_seed(seed)
        ids = list(prompt)
        for _ in range(num_tokens):
            window = torch.tensor([ids[-self.seq_len :]], dtype=torch.int64)
            logits_V = self.logits(window)[0, -1].double().cpu()
            if temperature > 0:
                chances_V = (logits_V / temperature).softmax(0)
                token = int(torch.multinomial(chances_V, 1, generator=generator))
            else:
                token = int(logits_V.argmax())
            ids.append(token)
            yield token


def one_process_job(model: ModelSpec, seq_len: int) -> JobSpec:
    """The smallest job around a model: what layers and planner ask for, and nothing to train."""
    return parse_data(
        {
            "version": 1,
            "name": "inference",
            "model": model.model_dump(mode="json") | {"preset": "custom"},
            "data": {"sources": [{"path": "none"}], "seq_len": seq_len},
            "batch": {"global_samples": 1},
            "optimizer": {"learning_rate": 1.0},
            "schedule": {"steps": 1},
            "workers": {"replicas": 1, "min": 1, "max": 1},
            "protection": {"redundancy": 1},
            "storage": {"dir": "none"},
        }
    )
