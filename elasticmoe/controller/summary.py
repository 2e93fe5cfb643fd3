"""What became of a job, in numbers."""

from typing import Any

from elasticmoe.controller.state import JobState


def summary(state: JobState) -> dict[str, Any]:
    """The brain's part of `summary.json`; plain data.

    `steps` are those of the committed history; `steps_rolled_back` (also under its older name
    `redone_steps`) those that were committed once and given up; `open_steps_redone` those that
    were begun and not committed when a fault came, which loses nothing. `outage_s` is the time
    from a fault's first sign, or the gang's end, until the next gang trained (the first start-up
    included as the time it took to form), `exposed_s` the time in training with units that lacked
    a home.
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
        "recoveries_by_rung": {
            "retry": tally.recoveries_retry,
            "replace": tally.recoveries_replace,
            "failover": tally.recoveries_failover,
            "snapshot": tally.recoveries_snapshot,
            "checkpoint": tally.recoveries_checkpoint,
        },
        "redone_steps": tally.steps_rolled_back,
        "steps_rolled_back": tally.steps_rolled_back,
        "open_steps_redone": tally.open_steps_redone,
        "exposed_s": tally.exposed_s,
        "outage_s": tally.outage_s,
        "workers_lost": tally.workers_lost,
        "nodes_lost": tally.nodes_lost,
        "nodes_quarantined": tally.nodes_quarantined,
        "regroupings": tally.regroupings,
        "checkpoints": tally.checkpoints_sealed,
        "checkpoints_lost": tally.checkpoints_lost,
        "newest_checkpoint": state.newest.uri if state.newest else None,
        "first_error": state.first_error.text if state.first_error else None,
        "first_error_log": state.first_error.log if state.first_error else None,
        "controller_terms": max(state.term, 1),
        "ignored_events": tally.ignored,
        "stale_messages": tally.stale,
    }
