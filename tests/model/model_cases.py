"""Small jobs and bound stages for the model's tests."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from elasticmoe.model.initialize import initial_unit
from elasticmoe.model.inventory import build_inventory
from elasticmoe.model.stage import StageModel
from elasticmoe.model.wave import SerialExchange, TokenExchange, Wave
from elasticmoe.plan.types import Inventory
from elasticmoe.spec.job import (
    BalanceSpec,
    BatchSpec,
    DataSpec,
    JobSpec,
    OptimizerSpec,
    ScheduleSpec,
    SourceSpec,
    StorageSpec,
    WorkersSpec,
)
from elasticmoe.spec.model import AttentionSpec, ModelSpec, MoESpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
MLA = AttentionSpec(
    kind="mla",
    num_heads=4,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    rope_interleaved=True,
)
MOE = MoESpec(
    num_experts=8,
    top_k=2,
    expert_hidden_size=16,
    num_shared_experts=1,
    num_groups=4,
    top_groups=2,
    routed_scaling=2.5,
)


def tiny_model(**changes: Any) -> ModelSpec:
    fields: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_layers": 3,
        "first_dense_layers": 1,
        "dense_hidden_size": 48,
        "attention": MLA,
        "moe": MOE,
        "mtp_depth": 1,
        "init_std": 0.2,
    }
    return ModelSpec(**(fields | changes))


def tiny_job(model: ModelSpec, *, balance: BalanceSpec | None = None, seq_len: int = 12) -> JobSpec:
    return JobSpec(
        version=1,
        name="tiny",
        model=model,
        data=DataSpec(sources=(SourceSpec(path="none"),), seq_len=seq_len),
        batch=BatchSpec(global_samples=8, num_waves=2),
        balance=balance or BalanceSpec(),
        optimizer=OptimizerSpec(learning_rate=1e-3),
        schedule=ScheduleSpec(steps=1),
        workers=WorkersSpec(replicas=1, min=1, max=1),
        storage=StorageSpec(dir="none"),
    )


@dataclass
class Whole:
    """A whole model on one worker, with its flat buffers."""

    job: JobSpec
    inventory: Inventory
    stage: StageModel
    weights: dict[int, Tensor]
    gradients: dict[int, Tensor]
    bias_LE: Tensor
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        waves = self.job.batch.num_waves
        self.counts = torch.zeros(waves, *self.bias_LE.shape, dtype=torch.int64)

    def wave(self, index: int, num_samples: int, exchange: TokenExchange | None = None) -> Wave:
        batch = self.job.batch
        return Wave(
            index=index,
            first_sample=0,
            num_samples=num_samples,
            wave_samples=batch.wave_samples,
            step_tokens=batch.global_samples * self.job.data.seq_len,
            num_waves=batch.num_waves,
            exchange=exchange or serial_exchange(self.inventory),
            bias_LE=self.bias_LE,
            earlier_counts_LE=self.counts,
        )

    def parameter(self, buffers: dict[int, Tensor], block: str, name: str) -> Tensor:
        found = self.inventory.block_by_name[block]
        (parameter,) = (p for p in found.parameters if p.name == name)
        span = slice(parameter.offset, parameter.offset + parameter.numel)
        flat = buffers[found.index][..., span]
        return flat.reshape(*flat.shape[:-1], *parameter.shape)

    def zero_gradients(self) -> None:
        for gradient in self.gradients.values():
            gradient.zero_()


def serial_exchange(inventory: Inventory) -> SerialExchange:
    return SerialExchange({b.index: torch.arange(b.num_experts) for b in inventory.moe_blocks})


def build_whole(job: JobSpec, *, trains: bool = True, seed: int = 0) -> Whole:
    model = job.model
    dtype = DTYPES[model.precision]
    exact = torch.float64 if model.precision == "fp64" else torch.float32
    inventory = build_inventory(model, job.data.seq_len)
    slots = {b.index: tuple(range(b.num_experts)) for b in inventory.moe_blocks}
    stage = StageModel(
        job,
        inventory,
        tuple(block.index for block in inventory.blocks),
        slots,
        is_first=True,
        is_last=True,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    weights, gradients = {}, {}
    for block in inventory.blocks:
        parts = [
            initial_unit(model, inventory, unit, seed, dtype)
            for unit in inventory.units_of_block[block.index]
        ]
        flat = torch.stack(parts) if block.is_experts else torch.cat(parts)
        weights[block.index] = flat
        gradients[block.index] = torch.zeros(flat.shape, dtype=exact)
        stage.bind(block.index, flat, gradients[block.index] if trains else None)
    bias = torch.zeros(len(inventory.moe_blocks), model.moe.num_experts, dtype=exact)
    return Whole(job, inventory, stage, weights, gradients, bias)


def random_ids(job: JobSpec, samples: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, job.model.vocab_size, (samples, job.sample_tokens), generator=random)
