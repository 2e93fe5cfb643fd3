"""Costs of the models from measurements, where there are any, instead of assumptions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final

from elasticmoe.errors import SpecError
from elasticmoe.simulator.costs import is_finite
from elasticmoe.simulator.rivals.elasticmoe import ElasticMoE
from elasticmoe.simulator.rivals.replay import Model
from elasticmoe.simulator.rivals.torchft import Torchft

NODE_LOSSES: Final = (
    "node_loss_s",
    "recovery_overhead_s_4_failover",
    "recovery_overhead_s_2_failover",
)
"""What a lost node costs this design; the death of a worker where no lost node was measured."""


RECOVERY: Final = ("overhead_s", "full_s")
"""What is kept of each recovery."""


class _WrongFieldError(Exception):
    """A field of a file of measurements is not what it should be; says which."""


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


def read_measurements(
    files: Sequence[Mapping[str, Any]], names: Sequence[str] = ()
) -> dict[str, float]:
    """Figures by name from what benchmarks print and keep; later files count.

    Args:
        files: each either a benchmark's last line, or what `benchmarks/recovery.py --out` keeps.
        names: what an error calls each of them; empty: by its number.

    Raises:
        SpecError: a file holds neither; names it, and the field where one is wrong.
    """
    figures: dict[str, float] = {}
    for number, plain in enumerate(files):
        name = names[number] if names else f"measurements, file {number + 1}"
        parts = plain.get("parts")
        try:
            found = _figures_of(parts) if isinstance(parts, Mapping) else _printed(plain)
        except _WrongFieldError as error:
            raise SpecError((f"{name}: {error}",)) from None
        if not found:
            raise SpecError((f"{name}: there is no figure in it",))
        figures |= found
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
        overhead_s, full_s = (_median(f"parts.{name}", part, key) for key in RECOVERY)
        if name.startswith("ours-"):
            figures[f"recovery_overhead_s_{name.removeprefix('ours-').replace('-', '_')}"] = (
                overhead_s
            )
        elif name.startswith("torchft-") and not _number(f"parts.{name}", part, "false_alarms"):
            torchft.append((overhead_s, _heartbeat_s(name), full_s))
    if torchft:
        overhead_s, heartbeat_s, full_s = min(torchft)
        figures["torchft_overhead_s"] = overhead_s
        figures["torchft_heartbeat_s"] = heartbeat_s
        figures["torchft_full_s"] = full_s
    return figures


def _printed(plain: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a benchmark's last line; what is no number there is none."""
    names = [k for k, v in plain.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    return {name: _number("", plain, name) for name in names}


def _median(where: str, part: Any, key: str) -> float:
    recoveries = part.get("recoveries") if isinstance(part, Mapping) else None
    if not isinstance(recoveries, Sequence) or isinstance(recoveries, str) or not recoveries:
        raise _WrongFieldError(f"{where}.recoveries: there is none; write a list of them")
    numbers = [
        _number(f"{where}.recoveries[{number}]", each, key)
        for number, each in enumerate(recoveries)
    ]
    return median(numbers)


def _number(where: str, plain: Any, key: str) -> float:
    value = plain.get(key) if isinstance(plain, Mapping) else None
    if value is None or not is_finite(value):
        field = ".".join(filter(None, (where, key)))
        raise _WrongFieldError(f"{field}: {value!r:.40} is not a finite number")
    return float(value)


def _heartbeat_s(name: str) -> float:
    """From the name of a part: `torchft-250` beats every 250 ms."""
    beat_ms = name.removeprefix("torchft-")
    if not beat_ms.isdecimal():
        raise _WrongFieldError(f"parts.{name}: name its heartbeat in ms, torchft-250 for example")
    return int(beat_ms) / 1e3
