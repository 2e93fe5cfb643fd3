"""A changed copy is what `dataclasses.replace` makes of it, whatever the class is like."""

import dataclasses
from functools import cached_property

import pytest

from elasticmoe.controller.changing import replace
from elasticmoe.controller.state import JobState


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    first: int
    second: str = "b"


@dataclasses.dataclass(frozen=True, slots=True)
class Single:
    only: int


@dataclasses.dataclass(frozen=True)
class Flat:
    first: int
    second: str = "b"

    @cached_property
    def doubled(self) -> int:
        return 2 * self.first


@pytest.mark.parametrize("one", [Slotted(1), Flat(1)])
def test_one_field_is_changed_and_the_others_are_kept(one: Slotted | Flat) -> None:
    changed = replace(one, first=7)

    assert changed == dataclasses.replace(one, first=7)
    assert type(changed) is type(one)
    assert (one.first, changed.second) == (1, "b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.first = 8  # type: ignore[misc]


def test_a_class_of_one_field_is_copied_too() -> None:
    assert replace(Single(1), only=2) == Single(2)
    assert replace(Single(1)) == Single(1)


def test_what_was_computed_from_the_fields_is_computed_anew() -> None:
    one = Flat(1)
    assert one.doubled == 2

    assert replace(one, first=7).doubled == 14


@pytest.mark.parametrize("one", [Slotted(1), Flat(1), JobState()])
def test_a_field_that_there_is_not_is_an_error(one: Slotted | Flat | JobState) -> None:
    with pytest.raises(TypeError):
        replace(one, third=3)  # type: ignore[call-arg]


def test_the_state_of_a_job_is_equal_to_one_with_the_same_changes_made_slowly() -> None:
    assert replace(JobState(), term=3) == dataclasses.replace(JobState(), term=3)
