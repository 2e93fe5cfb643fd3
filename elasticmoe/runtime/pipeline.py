"""The waves of a step through the stages, as the timetable says.

Within a stage a wave is split over its workers by sample; between stages it is resharded: each
worker sends the samples that another one's share overlaps. Receives are posted one operation
ahead; a send is never waited for inside the timetable, since a gloo send is a rendezvous.

Shapes: S = samples of this worker, T = sequence length, D = hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elasticmoe.model.stage import StageModel
from elasticmoe.model.wave import StageOutput, Wave
from elasticmoe.plan.types import Op, Plan
from elasticmoe.runtime.groups import Group, Groups, Pending


@dataclass(frozen=True, slots=True)
class _Overlap:
    """Samples that this worker shares with one of the neighbouring stage's."""

    peer: int
    start: int
    stop: int
    """[start, stop) relative to this worker's first sample."""


@dataclass(slots=True)
class _Arrival:
    tensor: Tensor
    pending: list[Pending]


class Pipeline:
    """Runs the waves of a step on one member."""

    def __init__(
        self,
        plan: Plan,
        member: int,
        groups: Groups,
        stage: StageModel,
        *,
        sample_shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """
        Args:
            plan: layout and timetable.
            member: this worker.
            groups: of this generation.
            stage: the layers to compute.
            sample_shape: (sequence length, hidden size) of one sample between stages.
            dtype: of activations.
            device: where to compute.
        """
        index = plan.stage_of_member[member]
        self._timetable = plan.stages[index].timetable
        self._stage, self._groups = stage, groups
        stage.on_layer = groups.over.check  # a broken generation is left within a layer's time
        self._sample_shape, self._dtype, self._device = sample_shape, dtype, device
        self._before = _overlaps(plan, member, index, index - 1)
        self._after = _overlaps(plan, member, index, index + 1)
        self._is_first, self._is_last = index == 0, index == len(plan.stages) - 1
        start, stop = plan.stages[index].samples[plan.stages[index].members.index(member)]
        self._num_samples = stop - start

    def run(self, waves: list[Wave], ids_of_wave: Callable[[int], Tensor]) -> list[StageOutput]:
        """Run forward and backward of all waves; gradients accumulate in the bound memory.

        Args:
            waves: this member's view of each wave.
            ids_of_wave: token ids of this member's samples of a wave, int64 [S, tokens].

        Returns:
            The outputs of each wave, without their graphs.
        """
        arrivals: dict[Op, _Arrival] = {}
        entered: dict[int, tuple[Tensor | None, StageOutput]] = {}
        outputs: dict[int, StageOutput] = {}
        sends: list[Pending] = []
        for position, op in enumerate(self._timetable):
            for ahead in self._timetable[position : position + 2]:
                if ahead not in arrivals:
                    arrivals[ahead] = self._post(ahead)
            arrival = arrivals[op]
            for pending in arrival.pending:
                pending.wait()
            arrival.pending.clear()
            if op.kind == "forward":
                hidden = None if self._is_first else arrival.tensor.requires_grad_()
                output = self._stage(waves[op.wave], ids_of_wave(op.wave), hidden)
                entered[op.wave] = (hidden, output)
                sends += self._send(output.hidden_STD, self._after, op, self._groups.forward_pipe)
            else:
                hidden, output = entered.pop(op.wave)
                self._backward(output, arrival.tensor)
                gradient = None if hidden is None else hidden.grad
                sends += self._send(gradient, self._before, op, self._groups.backward_pipe)
                outputs[op.wave] = _detached(output)
            arrival.tensor = torch.empty(0)
        for pending in sends:
            pending.wait()
        return [outputs[wave] for wave in range(len(waves))]

    def _backward(self, output: StageOutput, gradient: Tensor) -> None:
        if output.hidden_STD is None:
            output.loss.backward()
        elif output.loss.requires_grad:
            torch.autograd.backward([output.hidden_STD, output.loss], [gradient, None])
        else:
            output.hidden_STD.backward(gradient)

    def _post(self, op: Op) -> _Arrival:
        """Post the receives that an operation needs."""
        is_forward = op.kind == "forward"
        overlaps = self._before if is_forward else self._after
        pipe = self._groups.forward_pipe if is_forward else self._groups.backward_pipe
        if self._is_first if is_forward else self._is_last:
            return _Arrival(torch.empty(0), [])
        shape = (self._num_samples, *self._sample_shape)
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        pending = [
            pipe.receive(tensor[overlap.start : overlap.stop], overlap.peer, _tag(op))
            for overlap in overlaps
        ]
        return _Arrival(tensor, pending)

    def _send(
        self, tensor: Tensor | None, overlaps: list[_Overlap], op: Op, pipe: Group
    ) -> list[Pending]:
        if tensor is None:
            return []
        rows = tensor.detach().contiguous()
        return [
            pipe.send(rows[overlap.start : overlap.stop], overlap.peer, _tag(op))
            for overlap in overlaps
        ]


def _tag(op: Op) -> int:
    return 2 * op.wave + (op.kind == "backward")


def _overlaps(plan: Plan, member: int, stage: int, neighbour: int) -> list[_Overlap]:
    if not 0 <= neighbour < len(plan.stages):
        return []
    mine = plan.stages[stage]
    start, stop = mine.samples[mine.members.index(member)]
    found = []
    other = plan.stages[neighbour]
    for peer, (first, last) in zip(other.members, other.samples, strict=True):
        low, high = max(start, first), min(stop, last)
        if low < high:
            found.append(_Overlap(peer, low - start, high - start))
    return found


def _detached(output: StageOutput) -> StageOutput:
    return StageOutput(
        hidden_STD=None,
        loss=output.loss.detach(),
        lm_loss_sum=output.lm_loss_sum,
        mtp_loss_sums=output.mtp_loss_sums,
        aux_loss=output.aux_loss,
    )
