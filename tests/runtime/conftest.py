"""One pool of worker processes for all tests of this package."""

from collections.abc import Iterator

import pytest
from gangs import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Eight processes that gangs are formed from."""
    made = Pool()
    yield made
    made.close()
