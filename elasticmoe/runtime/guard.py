"""The end of patience with steps that the numerical guard skips."""

from elasticmoe.errors import ElasticMoEError
from elasticmoe.messages.worker import MOST_SKIPPED, STEPS_SKIPPED
from elasticmoe.runtime.gang import Gang
from elasticmoe.runtime.record import StepResult


class StepsSkippedError(ElasticMoEError):
    """So many steps in a row changed no weights that another one would not either."""

    code = STEPS_SKIPPED


class Guard:
    """Counts skipped steps of one generation; comes to the same on all members."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def note(self, gang: Gang, result: StepResult) -> None:
        """Take in a committed step; called by all members between the same two steps.

        Raises:
            StepsSkippedError: it is the last of `MOST_SKIPPED` skipped ones.
        """
        self._in_a_row = 0 if result.changes_weights else self._in_a_row + 1
        if self._in_a_row < MOST_SKIPPED:
            return
        gang.groups.world.barrier()  # nobody hangs up on a peer that is still in the step
        last, most = gang.progress.step, gang.job.protection.max_loss_ratio
        why = "their losses or gradients were not finite"
        if result.is_spike:
            why = (
                f"their losses (the last one: {result.loss:.3g}) were more than {most:g} times the "
                f"running one ({gang.progress.running_loss:.3g})"
            )
        raise StepsSkippedError(f"steps {last - MOST_SKIPPED + 1} to {last} changed nothing: {why}")
