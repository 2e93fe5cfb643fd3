import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["describe", "dispatch", "experts", "layout", "survival"])
def test_the_examples_in_the_docstrings_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"elasticmoe.plan.{name}"))

    assert result.attempted > 0
    assert result.failed == 0
