"""What shall go wrong, when, and what must be true afterwards: one frozen tree, read from TOML."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chaos.errors import ScenarioError
from chaos.mistakes import explain
from chaos.nemeses import NEMESES
from chaos.nemeses.base import Nemesis

SCENARIOS: Final = Path(__file__).parent / "scenarios"
"""Those that ship: `kill_worker` means `kill_worker.toml` in here."""


class Table(BaseModel):
    """A frozen, strict piece of a scenario."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True
    )


class JobChoice(Table):
    """Which job is to suffer."""

    path: str | None = None
    """A job file; none: a tiny one that takes some 20 ms a step."""
    set: tuple[str, ...] = ()
    """`path=value`, as `elasticmoe train --set` takes them."""
    end: Literal["stop", "steps"] = "stop"
    """`stop`: ask it to end once the last fault is answered; `steps`: let it take all its steps."""
    tail_steps: int = Field(default=10, ge=1)
    """Steps that must follow the last answer."""


class ClusterChoice(Table):
    """A Ray cluster in network namespaces; without it the job gets a local Ray of its own."""

    nodes: tuple[str, ...] = Field(min_length=1)
    """Beside the head, which has no room for workers; each is a failure domain of this name."""
    workers: int = Field(default=2, ge=1)
    """Room for workers on each."""
    durable_head: bool | Literal["redis"] = False
    """The head keeps its state, so that it can be killed and come back: on disk, or in Redis."""


class Target(Table):
    """Whom to strike; what is left out is chosen at random among the members of the gang."""

    worker: int | None = Field(default=None, ge=0)
    """Number of the worker."""
    member: int | None = Field(default=None, ge=0)
    """Position in the plan; member 0 is the one that reports steps."""
    stage: int | None = Field(default=None, ge=0)
    node: str | None = None
    """Beginning of the node's name."""
    count: int = Field(default=1, ge=1)
    """Victims at once."""
    all: bool = False
    """All that fit."""


class Choice(Table):
    """One thing that can be done."""

    nemesis: str
    weight: float = Field(default=1.0, gt=0)
    """How often it is drawn, relative to the others."""
    at_most: int | None = Field(default=None, ge=1)
    target: Target = Target()
    parameters: dict[str, Any] = Field(default={}, alias="with")
    """Fields of the nemesis."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.nemesis not in NEMESES:
            raise ValueError(f'no nemesis "{self.nemesis}"; there are {", ".join(sorted(NEMESES))}')
        self.made()
        return self

    def made(self) -> Nemesis:
        """The nemesis with its parameters."""
        kind = NEMESES[self.nemesis]
        try:
            return kind.model_validate_json(json.dumps(self.parameters))
        except ValidationError as error:
            raise ValueError(f"{self.nemesis}: {'; '.join(explain(error, kind))}") from None


class FaultSpec(Table):
    """One fault, or many alike."""

    strike: tuple[Choice, ...] = Field(min_length=1)
    """One of these, drawn anew each time."""
    at_step: int | None = Field(default=None, ge=1)
    """Once this many steps are committed."""
    every_steps: float | None = Field(default=None, gt=0)
    """Mean of the exponentially distributed number of steps between two."""
    recovering: Literal["breaking", "gathering", "forming"] | None = None
    """When the next recovery, after the fault before this one, gets this far."""
    count: int = Field(default=1, ge=1)
    overlap: bool = False
    """Do not wait until the fault before is answered and undone."""
    rest_steps: int = Field(default=1, ge=1)
    """Steps since that answer before this one strikes; not with `overlap`."""

    @model_validator(mode="after")
    def _one_trigger(self) -> Self:
        triggers = {
            "at_step": self.at_step,
            "every_steps": self.every_steps,
            "recovering": self.recovering,
        }
        given = [name for name, value in triggers.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"a fault needs exactly one of at_step, every_steps and recovering; this one has "
                f"{' and '.join(given) or 'none'}"
            )
        if self.count > 1 and self.at_step is not None:
            raise ValueError("count needs every_steps or recovering: a step comes once")
        return self


class Expect(Table):
    """What must be true afterwards."""

    outcome: Literal["done", "stopped", "failed"] = "stopped"
    steps_rolled_back: int = Field(default=0, ge=0)
    """Committed steps that may be lost, over the whole run."""
    steps_redone: int | None = Field(default=None, ge=0)
    """Steps that may be begun again, open ones included; none: one per victim and false alarm."""
    rungs: tuple[str, ...] = ()
    """Every recovery takes one of these; empty: any."""
    answer_s: float = Field(default=30.0, gt=0)
    """From a fault to the first step committed after it was answered, at most."""
    false_alarms: int = Field(default=0, ge=0)
    """Recoveries that no fault of ours explains."""
    final: Literal["bitwise", "close", "ignore"] = "ignore"
    """Every tensor of the last checkpoint beside that of an undisturbed run."""
    tolerance: float = Field(default=1e-8, gt=0)
    """For `close`, relative to the largest element of the tensor."""
    story: tuple[str, ...] = ()
    """Regular expressions; each must match a sentence of the job's story."""


class Scenario(Table):
    """Faults, and a job to have them."""

    name: str = Field(pattern=r"^[a-z0-9_-]{1,60}$")
    about: str = ""
    seed: int = Field(default=0, ge=0)
    job: JobChoice = JobChoice()
    cluster: ClusterChoice | None = None
    disk_mb: int | None = Field(default=None, ge=128)
    """Put the job's checkpoints on a disk of this size."""
    skewable_clocks: bool = False
    """Start the job so that `skew_clock` can reach it."""
    limit_s: float = Field(default=1800.0, gt=0)
    """What is not over by then is ended, and that is the verdict."""
    fault: tuple[FaultSpec, ...] = ()
    expect: Expect = Expect()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for fault in self.fault:
            for choice in fault.strike:
                lacking = choice.made().lacks(self)
                if lacking:
                    raise ValueError(f"{choice.nemesis} needs {lacking}")
        return self

    @property
    def has_cluster(self) -> bool:
        """Whether nodes and links are ours to break."""
        return self.cluster is not None

    @property
    def has_small_disk(self) -> bool:
        """Whether there is a disk to fill."""
        return self.disk_mb is not None


def parse_scenario(text: str) -> Scenario:
    """Read a scenario from TOML text.

    Raises:
        ScenarioError: one line per mistake.
    """
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError((f"this is not valid TOML: {error}",)) from None
    return from_plain(plain)


def from_plain(plain: Mapping[str, Any]) -> Scenario:
    """Build a scenario from plain data.

    Raises:
        ScenarioError: one line per mistake.
    """
    try:
        return Scenario.model_validate_json(json.dumps(plain, default=str))
    except ValidationError as error:
        raise ScenarioError(explain(error, Scenario)) from None


def read_scenario(name: str) -> Scenario:
    """Read a scenario by the path of its file, or by the name of one that ships.

    Raises:
        ScenarioError: there is no such file, or it is wrong.
    """
    path = Path(name)
    if not path.suffix:
        path = SCENARIOS / f"{name}.toml"
    try:
        return parse_scenario(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(found.stem for found in SCENARIOS.glob("*.toml")))
        raise ScenarioError((f"{path} does not exist; shipped scenarios: {known}",)) from None
