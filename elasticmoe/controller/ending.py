"""How a job ends: finished, stopped or given up."""

from elasticmoe.controller.changing import replace
from elasticmoe.controller.decisions import Finish, GiveUp, Stop
from elasticmoe.controller.protecting import no_longer_exposed
from elasticmoe.controller.recovery import origin
from elasticmoe.controller.state import JobState, Outcome
from elasticmoe.controller.wording import plural
from elasticmoe.messages.commands import EndJob
from elasticmoe.messages.events import StopAsked

OUTCOMES = {Finish: "done", Stop: "stopped", GiveUp: "failed"}


def stop_asked(state: JobState, event: StopAsked) -> Outcome:
    """Somebody wants the job to end."""
    return replace(state, stops=state.stops + 1, stop_by=state.stop_by or event.by), ()


def ends_now(state: JobState) -> bool:
    """Whether a wish to stop is granted at once. In a pause that was agreed on nothing is lost, and
    the gang is about to train again: it then ends with a checkpoint."""
    is_planned = state.outage is not None and state.outage.is_planned
    return state.stops > 1 or (state.stops == 1 and not is_planned)


def decide_stop(state: JobState, because: str = "") -> Stop:
    """End now, with the newest checkpoint as it is."""
    kept = state.newest.step if state.newest else 0
    lost = state.committed_step - kept
    if lost <= 0:
        where = f"; saved in {state.newest.uri}" if state.newest else ""
        cost = f" at step {kept}{where}"
    else:
        cost = f"; {origin(state.newest)} is the newest, {plural(lost, 'later step')} not kept"
    why = f" ({because})" if because else ""
    return Stop(state.now_s, f"stopped by {state.stop_by}{cost}{why}")


def decide_finish(state: JobState) -> Finish:
    """All steps are done and saved."""
    assert state.newest is not None, "a job is finished only when its last step is saved"
    steps = plural(state.spec.schedule.steps, "step")
    return Finish(state.now_s, f"all {steps} are done; saved in {state.newest.uri}")


def apply_end(state: JobState, decision: Finish | Stop | GiveUp) -> Outcome:
    """Let everything go."""
    if isinstance(decision, Stop):
        kept = state.newest.step if state.newest else 0
        state = replace(state, committed_step=min(state.committed_step, kept))
    state = replace(no_longer_exposed(state, decision.at_s), outcome=decision.reason)
    return state, (EndJob(OUTCOMES[type(decision)], decision.reason),)


def end_commands(state: JobState) -> tuple[EndJob, ...]:
    """The end of a job that has ended, once more."""
    return (EndJob(state.phase.value, state.outcome),)
