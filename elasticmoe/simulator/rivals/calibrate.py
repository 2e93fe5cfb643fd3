"""Costs of the models from measurements, where there are any, instead of assumptions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final

from elasticmoe.errors import SpecError
from elasticmoe.simulator.rivals.elasticmoe import ElasticMoE
from elasticmoe.simulator.rivals.replay import Model
from elasticmoe.simulator.rivals.torchft import Torchft

NODE_LOSSES: Final = (
    "node_loss_s",
    "recovery_overhead_s_4_failover",
    "recovery_overhead_s_2_failover",
)
"""What a lost node costs this design; the death of a worker where no lost node was measured."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A cost that was measured."""

    model: str
    field: str
    value: float
    figure: str
    """Which figure it is."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Models with measured costs."""

    models: tuple[Model, ...]
    taken: tuple[Taken, ...]


def read_measurements(files: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures by name from what benchmarks print and keep; later files count.

    Args:
        files: each either a benchmark's last line, or what `benchmarks/recovery.py --out` keeps.

    Raises:
        SpecError: a file holds neither.
    """
    figures: dict[str, float] = {}
    for number, plain in enumerate(files, start=1):
        parts = plain.get("parts")
        found = _figures_of(parts) if isinstance(parts, Mapping) else plain
        numbers = {k: float(v) for k, v in found.items() if isinstance(v, int | float)}
        if not numbers:
            raise SpecError((f"measurements, file {number}: there is no figure in it",))
        figures |= numbers
    return figures


def calibrate(models: Sequence[Model], figures: Mapping[str, float]) -> Calibrated:
    """Put measured costs into the models; what was not measured stays as it is assumed.

    Args:
        figures: from `read_measurements`.
    """
    changed: list[Model] = []
    taken: list[Taken] = []
    for model in models:
        found = _measured(model, figures)
        taken += found
        changes: dict[str, Any] = {one.field: one.value for one in found}
        if isinstance(model, (ElasticMoE, Torchft)):
            changed.append(replace(model, **changes))
        else:
            changed.append(model)
    return Calibrated(tuple(changed), tuple(taken))


def _measured(model: Model, figures: Mapping[str, float]) -> list[Taken]:
    taken = []
    for cost in COSTS.get(type(model), ()):
        figure = next((one for one in cost.figures if one in figures), None)
        if figure is not None:
            value = max(figures[figure] - figures.get(cost.less, 0.0), 0.0)
            taken.append(Taken(model.name, cost.field, value, figure))
    return taken


@dataclass(frozen=True, slots=True)
class _Cost:
    """A field of a model, and the figures that measure it, the best first."""

    field: str
    figures: tuple[str, ...]
    less: str = ""
    """A figure that is part of it and a field of its own."""


COSTS: Final[Mapping[type, tuple[_Cost, ...]]] = {
    ElasticMoE: (
        _Cost("failover_s", NODE_LOSSES),
        _Cost("join_s", NODE_LOSSES),
        _Cost("overhead", ("protocol_share",)),
    ),
    Torchft: (
        _Cost("heartbeat_s", ("torchft_heartbeat_s",)),
        _Cost("reconfigure_s", ("torchft_overhead_s",), less="torchft_heartbeat_s"),
        _Cost("group_restart_s", ("torchft_full_s",)),
    ),
}


def _figures_of(parts: Mapping[str, Any]) -> dict[str, float]:
    """Medians over the recoveries of `benchmarks/recovery.py --out`; of torchft's heartbeats the
    one with the least overhead that raised no false alarm."""
    figures: dict[str, float] = {}
    torchft: list[tuple[float, float, float]] = []
    for name, part in parts.items():
        overhead_s, full_s = (
            median(float(each[key]) for each in part["recoveries"])
            for key in ("overhead_s", "full_s")
        )
        if name.startswith("ours-"):
            figures[f"recovery_overhead_s_{name.removeprefix('ours-').replace('-', '_')}"] = (
                overhead_s
            )
        elif name.startswith("torchft-") and not part["false_alarms"]:
            torchft.append((overhead_s, float(name.removeprefix("torchft-")) / 1e3, full_s))
    if torchft:
        overhead_s, heartbeat_s, full_s = min(torchft)
        figures["torchft_overhead_s"] = overhead_s
        figures["torchft_heartbeat_s"] = heartbeat_s
        figures["torchft_full_s"] = full_s
    return figures
