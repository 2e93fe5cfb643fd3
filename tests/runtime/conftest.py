"""One pool of worker processes for all tests of this package."""

from collections.abc import Iterator

import pytest
from crews import Crew
from gangs import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Eight processes that gangs are formed from."""
    made = Pool()
    yield made
    made.close()


@pytest.fixture
def crews() -> Iterator[list[Crew]]:
    """Crews to end with the test."""
    made: list[Crew] = []
    yield made
    for crew in made:
        crew.close()
