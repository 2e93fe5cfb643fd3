"""The part of the network that one worker computes.

Shapes: S = samples of this worker in the wave, T = tokens of a sample, D = hidden size,
V = vocabulary, L = MoE layers, E = experts.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elasticmoe.model.blocks import Balancing, Embedding, Head, Layer, build_block
from elasticmoe.model.blocks import MultiTokenPrediction as MTP
from elasticmoe.model.experts import Experts, accumulate_into
from elasticmoe.model.moe import LayerCall
from elasticmoe.model.recompute import recompute
from elasticmoe.model.rope import build_rotary
from elasticmoe.model.wave import SerialExchange, StageOutput, Wave
from elasticmoe.plan.types import Inventory
from elasticmoe.spec.job import JobSpec


class StageModel(nn.Module):
    """A worker's blocks. Weights and gradients live in flat buffers that `bind` hands over."""

    def __init__(
        self,
        job: JobSpec,
        inventory: Inventory,
        blocks: tuple[int, ...],
        slots: Mapping[int, tuple[int, ...]],
        *,
        is_first: bool,
        is_last: bool,
        dtype: torch.dtype,
        device: torch.device,
        built: dict[str, nn.Module] | None = None,
    ) -> None:
        """
        Args:
            job: what the user asked for.
            inventory: the whole model's blocks.
            blocks: this stage's dense and experts blocks, in network order.
            slots: experts block -> experts in this worker's slots.
            is_first: whether it embeds; is_last: whether it computes the losses.
            dtype: of compute weights and activations.
            device: where to compute.
            built: dense modules by block name, from here if they are there, else put there. No
                other stage that is still in use may share them.
        """
        super().__init__()
        self._job, self._inventory, self._slots = job, inventory, dict(slots)
        self._is_first, self._is_last = is_first, is_last
        self._dtype, self._device = dtype, device
        self._row = {block.index: row for row, block in enumerate(inventory.moe_blocks)}
        self._modules_of: dict[str, nn.Module] = {}
        balancing = Balancing(job.balance, job.window_samples)
        for index in blocks:
            block = inventory.blocks[index]
            if block.is_experts:
                module: nn.Module = Experts(
                    job.model.hidden_size, job.model.moe, block, len(slots[index])
                )
            else:
                module = _dense_module(job, balancing, block.name, built)
            self._modules_of[block.name] = module
            self.add_module(block.name.replace(".", "_"), module)
        self._rotary = build_rotary(
            job.model.attention, job.model.hidden_size, job.data.seq_len, dtype, device
        )
        self._trains = False
        self.on_layer: Callable[[], None] = _go_on
        """Called before each half of every layer, forward and backward; may raise, to leave the
        wave."""

    def bind(self, block: int, weights: Tensor, gradients: Tensor | None) -> None:
        """Compute with these weights from now on and add gradients to this buffer.

        Args:
            block: one of this stage's blocks.
            weights: flat, [numel] for a dense block, [slots, numel] for an experts block; in
                the compute dtype. May be changed in place between steps.
            gradients: the same shape in fp32 (fp64 with fp64), to which every backward pass
                adds; the caller zeroes it. None: inference.
        """
        found = self._inventory.blocks[block]
        self._trains = gradients is not None
        module = self._modules_of[found.name]
        if isinstance(module, Experts):
            module.bind(weights, gradients)
            return
        assert weights.shape == (found.numel,), (weights.shape, found.name, found.numel)
        for parameter in found.parameters:
            span = slice(parameter.offset, parameter.offset + parameter.numel)
            bound = nn.Parameter(weights[span].view(parameter.shape), gradients is not None)
            if gradients is not None:
                accumulate_into(bound, gradients[span].view(parameter.shape))
            owner, _, name = parameter.name.rpartition(".")
            setattr(module.get_submodule(owner), name, bound)

    def forward(self, wave: Wave, ids_ST: Tensor, hidden_STD: Tensor | None) -> StageOutput:
        """Compute this stage's part of a wave.

        Args:
            wave: which samples, and how to reach the stage's other workers.
            ids_ST: int64, [S, seq_len + 1 + mtp_depth].
            hidden_STD: the stage before's output; none on the first stage.
        """
        hidden_STD, aux = self._layers(wave, ids_ST, hidden_STD, inference=False)
        if not self._is_last:
            return StageOutput(hidden_STD, aux, aux_loss=float(aux.detach()))
        seq_len, depth = self._job.data.seq_len, self._job.model.mtp_depth
        normed_STD = self._head.norm(hidden_STD)
        self._pass(normed_STD)
        lm_sum = self._cross_entropy(normed_STD, ids_ST[:, 1 : 1 + seq_len])
        loss = lm_sum / wave.step_tokens
        mtp_sums: list[Tensor] = []
        for k in range(depth):
            name = f"mtp.{k}"
            module = self._modules_of[name]
            assert isinstance(module, MTP)
            embedded = self._embedding(ids_ST[:, 1 + k : 1 + k + seq_len])
            call = self._call(wave, name, inference=False)
            assert call is not None
            normed_STD, layer_aux = module(embedded, normed_STD, self._rotary, call, self._pass)
            self._pass(normed_STD)
            aux = aux if layer_aux is None else aux + layer_aux
            mtp_sums.append(self._cross_entropy(normed_STD, ids_ST[:, 2 + k : 2 + k + seq_len]))
            loss = loss + self._job.model.mtp_loss_weight / depth * mtp_sums[-1] / wave.step_tokens
        return StageOutput(
            hidden_STD=None,
            loss=loss + aux,
            lm_loss_sum=float(lm_sum.detach()),
            mtp_loss_sums=tuple(float(total.detach()) for total in mtp_sums),
            aux_loss=float(aux.detach()),
        )

    @torch.no_grad()
    def logits(self, ids_ST: Tensor, bias_LE: Tensor) -> Tensor:
        """Next-token logits of a model that is whole on this worker; never drops a token.

        Args:
            ids_ST: int64, at most `seq_len` tokens per sample.
            bias_LE: selection bias of all MoE layers.

        Returns:
            [S, T, V] in at least fp32.
        """
        assert (self._is_first, self._is_last) == (True, True), "needs all blocks on one worker"
        wave = self._serial_wave(ids_ST, bias_LE)
        hidden_STD, _ = self._layers(wave, ids_ST, None, inference=True)
        return self._project(self._head.norm(hidden_STD))

    @property
    def _embedding(self) -> Embedding:
        module = self._modules_of["embedding"]
        assert isinstance(module, Embedding)
        return module

    @property
    def _head(self) -> Head:
        module = self._modules_of["head"]
        assert isinstance(module, Head)
        return module

    def _layers(
        self, wave: Wave, ids_ST: Tensor, hidden_STD: Tensor | None, *, inference: bool
    ) -> tuple[Tensor, Tensor]:
        """Embed if first, then this stage's layers; also their auxiliary losses."""
        if self._is_first:
            length = min(self._job.data.seq_len, ids_ST.shape[1])
            hidden_STD = self._embedding(ids_ST[:, :length])
        assert hidden_STD is not None, "a later stage needs the hidden states before it"
        exact = torch.float64 if self._dtype is torch.float64 else torch.float32
        # Requires grad in training, so that the stage's loss can always be differentiated.
        aux = torch.zeros((), dtype=exact, device=self._device, requires_grad=self._trains) + 0.0
        for name, module in self._modules_of.items():
            if not isinstance(module, Layer):
                continue
            self.on_layer()
            call = self._call(wave, name, inference=inference)
            hidden_STD, layer_aux = self._layer(name, module, hidden_STD, call)
            self._watch_backward(hidden_STD)
            aux = aux if layer_aux is None else aux + layer_aux
        return hidden_STD, aux

    def _pass(self, hidden_STD: Tensor) -> None:
        """Check on the way forward, and when its gradient is there."""
        self.on_layer()
        self._watch_backward(hidden_STD)

    def _watch_backward(self, hidden_STD: Tensor) -> None:
        if hidden_STD.requires_grad:
            hidden_STD.register_hook(lambda gradient_STD: self.on_layer())

    def _layer(
        self, name: str, module: Layer, hidden_STD: Tensor, call: LayerCall | None
    ) -> tuple[Tensor, Tensor | None]:
        recomputed = self._job.model.recompute_layers
        layer = self._inventory.block_by_name[name].layer
        if not (recomputed and recomputed[0] <= layer < recomputed[1] and hidden_STD.requires_grad):
            return module(hidden_STD, self._rotary, call, self._pass)
        run = partial(_run_layer, module, self._rotary, call, self._pass)
        return recompute(run, hidden_STD)

    def _call(self, wave: Wave, name: str, *, inference: bool) -> LayerCall | None:
        experts = self._modules_of.get(f"{name}.experts")
        if experts is None:
            return None
        assert isinstance(experts, Experts)
        return LayerCall(wave, experts, self._row[experts.block.index], inference)

    def _project(self, normed_STD: Tensor) -> Tensor:
        tied = self._job.model.tied_embeddings
        logits = F.linear(normed_STD, self._embedding.weight if tied else self._head.weight)
        return logits if logits.dtype is torch.float64 else logits.float()

    def _cross_entropy(self, normed_STD: Tensor, targets_ST: Tensor) -> Tensor:
        logits = self._project(normed_STD)
        return F.cross_entropy(logits.flatten(0, 1), targets_ST.flatten(), reduction="sum")

    def _serial_wave(self, ids_ST: Tensor, bias_LE: Tensor) -> Wave:
        slot_of_expert = {}
        for block, experts in self._slots.items():
            slots = torch.empty(len(experts), dtype=torch.int64, device=self._device)
            slots[list(experts)] = torch.arange(len(experts), device=self._device)
            slot_of_expert[block] = slots
        samples = len(ids_ST)
        return Wave(
            index=0,
            first_sample=0,
            num_samples=samples,
            wave_samples=samples,
            step_tokens=max(ids_ST.numel(), 1),
            num_waves=1,
            exchange=SerialExchange(slot_of_expert),
            bias_LE=bias_LE,
            earlier_counts_LE=torch.zeros(
                1, *bias_LE.shape, dtype=torch.int64, device=self._device
            ),
        )


def build_dense(job: JobSpec, inventory: Inventory) -> dict[str, nn.Module]:
    """All dense modules of a model, without memory: what a stage takes from `built`."""
    balancing = Balancing(job.balance, job.window_samples)
    built: dict[str, nn.Module] = {}
    for block in inventory.blocks:
        if not block.is_experts:
            _dense_module(job, balancing, block.name, built)
    return built


def _dense_module(
    job: JobSpec, balancing: Balancing, name: str, built: dict[str, nn.Module] | None
) -> nn.Module:
    if built is not None and name in built:
        return built[name]
    with torch.device("meta"):
        module = build_block(job.model, balancing, name)
    if built is not None:
        built[name] = module
    return module


def _go_on() -> None:
    """Nobody wants to leave."""


def _run_layer(
    module: Layer,
    rotary: object,
    call: LayerCall | None,
    halfway: Callable[[Tensor], None],
    x_STD: Tensor,
) -> tuple[Tensor, Tensor]:
    out, aux = module(x_STD, rotary, call, halfway)
    return out, out.new_zeros(()) if aux is None else aux
