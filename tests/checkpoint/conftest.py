"""A place for checkpoints."""

from pathlib import Path

import pytest

from elasticmoe.checkpoint.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "checkpoints")
