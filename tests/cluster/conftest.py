from collections.abc import Iterator

import pytest
from processes import MARK, Processes, reap


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """Marks what the test starts, and cleans up behind it."""
    marked = Processes()
    monkeypatch.setenv(MARK, marked.mark)
    yield marked
    marked.kill_all()
    reap()
