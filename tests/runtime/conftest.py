"""One pool of worker processes for all tests of this package."""

from collections.abc import Iterator

import pytest
from crews import Crew
from gangs import Pool

from elasticmoe.runtime.names import look_up_no_names


@pytest.fixture(scope="session", autouse=True)
def _nobody_is_looked_up() -> None:
    """Gangs form without asking a name server, as those that the warm parent forks do."""
    look_up_no_names()


@pytest.fixture(scope="session")
def pool(_nobody_is_looked_up: None) -> Iterator[Pool]:
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
