"""The state that a run ended with, beside that of an undisturbed run: tensor by tensor."""

from dataclasses import dataclass
from pathlib import Path

import torch

from elasticmoe.checkpoint.read import Checkpoint, open_verified
from elasticmoe.checkpoint.store import open_store


@dataclass(frozen=True, slots=True)
class Difference:
    """One tensor that is not the same."""

    name: str
    relative: float
    """Largest difference, over the largest element of the undisturbed run's tensor."""
    num_different: int
    numel: int


def final_checkpoint(checkpoints: Path, step: int | None = None) -> Checkpoint:
    """A job's newest checkpoint, or that of a step, whose every byte verifies.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    return open_verified(open_store(checkpoints), step)


def compare(found: Checkpoint, wanted: Checkpoint) -> list[Difference]:
    """Tensors that are not bitwise equal, the worst first; a missing one is infinitely bad."""
    differences = []
    for name in sorted(found.rows.keys() | wanted.rows.keys()):
        if name not in found.rows or name not in wanted.rows:
            differences.append(Difference(name, float("inf"), 0, 0))
            continue
        difference = difference_of(name, found.read(name), wanted.read(name))
        if difference is not None:
            differences.append(difference)
    return sorted(differences, key=lambda difference: -difference.relative)


def difference_of(name: str, found: torch.Tensor, wanted: torch.Tensor) -> Difference | None:
    """How two tensors differ; none: not in a single bit."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return Difference(name, float("inf"), wanted.numel(), wanted.numel())
    if found.numel() == 0:
        return None
    same = found.contiguous().view(torch.uint8) == wanted.contiguous().view(torch.uint8)
    if bool(same.all()):
        return None
    mine, other = found.double(), wanted.double()
    largest = float(other.abs().max())
    difference = float((mine - other).abs().max())
    relative = difference / largest if largest else float("inf") if difference else 0.0
    if relative != relative:  # not a number on either side
        relative = float("inf")
    return Difference(name, relative, int((mine != other).sum()), wanted.numel())


def check_final(
    found: Checkpoint, wanted: Checkpoint, *, bitwise: bool, tolerance: float
) -> tuple[tuple[str, ...], float]:
    """Problems, and the largest relative difference of any tensor."""
    differences = compare(found, wanted)
    worst = max((difference.relative for difference in differences), default=0.0)
    problems = []
    if found.manifest.step != wanted.manifest.step:
        problems.append(
            f"the run ended at step {found.manifest.step}, the undisturbed one at "
            f"{wanted.manifest.step}"
        )
    bad = [item for item in differences if bitwise or item.relative > tolerance]
    if bad:
        first = bad[0]
        problems.append(
            f"{len(bad)} of {len(wanted.rows)} tensors differ from the undisturbed run; "
            f"{first.name} by {first.relative:.3g} of its largest element, in "
            f"{first.num_different} of {first.numel} elements"
        )
    return tuple(problems), worst
