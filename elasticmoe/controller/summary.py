"""What became of a job, in numbers."""

from typing import Any

from elasticmoe.controller.state import JobState


def summary(state: JobState) -> dict[str, Any]:
    """The brain's part of `summary.json`; plain data.

    `steps` are those of the committed history, `redone_steps` those that were committed once and
    given up in a rollback, `outage_s` the time from a fault's first sign, or the gang's end, until
    the next gang trained (the first start-up included as the time it took to form).
    """
    tally = state.tally
    return {
        "outcome": state.phase.value,
        "reason": state.outcome,
        "steps": state.committed_step,
        "loss": state.loss,
        "wall_s": state.now_s - state.submitted_s,
        "generations": state.generation,
        "timelines": state.timeline + 1,
        "faults": tally.faults,
        "recoveries": tally.recoveries,
        "redone_steps": tally.redone_steps,
        "outage_s": tally.outage_s,
        "workers_lost": tally.workers_lost,
        "nodes_lost": tally.nodes_lost,
        "checkpoints": tally.checkpoints_sealed,
        "checkpoints_lost": tally.checkpoints_lost,
        "newest_checkpoint": state.newest.uri if state.newest else None,
        "first_error": state.first_error.text if state.first_error else None,
        "first_error_log": state.first_error.log if state.first_error else None,
        "controller_terms": max(state.term, 1),
        "ignored_events": tally.ignored,
        "stale_messages": tally.stale,
    }
