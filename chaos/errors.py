"""What can go wrong in a run of faults, apart from what it is meant to find."""


class ChaosError(Exception):
    """The run proves nothing: a scenario is wrong, a fault did not fire, the job got stuck."""


class ScenarioError(ChaosError):
    """A scenario is wrong in one or several places; one line each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class NotFiredError(ChaosError):
    """A fault left no proof that it happened, so whatever followed says nothing about it."""


class GoneError(NotFiredError):
    """The victim was gone before it could be struck: another one will do."""


class StuckError(ChaosError):
    """The job committed no step within the patience after a fault, or never began."""
