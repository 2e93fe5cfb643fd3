"""Every nemesis that a scenario can name can strike: none is a promise."""

import inspect

import pytest

from chaos.nemeses import NEMESES
from chaos.nemeses.base import Nemesis
from chaos.nemeses.link import OfLinks


@pytest.mark.parametrize("name", sorted(NEMESES))
def test_a_nemesis_that_has_a_name_is_complete(name: str) -> None:
    assert not inspect.isabstract(NEMESES[name])


@pytest.mark.parametrize("kind", [Nemesis, OfLinks])
def test_what_nemeses_share_cannot_strike_by_itself(kind: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        kind()
