"""The loop: durable before acted on, decided before done, and safe to start again."""

import asyncio
import time

import pytest
from loops import Agent, ListJournal, StillAgent

from elasticmoe.controller.decisions import Train
from elasticmoe.controller.history import check_history
from elasticmoe.controller.loop import Controller
from elasticmoe.controller.machine import replay
from elasticmoe.controller.phases import Phase
from elasticmoe.controller.record import Decided, Progress
from elasticmoe.errors import StorageError
from elasticmoe.messages.commands import EndJob, StartWorkers
from elasticmoe.messages.events import NodeUp, TimePassed


async def train(agent: Agent) -> Controller:
    controller = await agent.begin()
    await agent.post(NodeUp(0, "a", "a", "host", 2, 2**30))
    await asyncio.wait_for(controller.run(), 10)
    return controller


def test_a_job_runs_to_its_end_and_its_journal_rebuilds_the_state() -> None:
    agent = Agent(ListJournal())

    controller = asyncio.run(train(agent))

    assert controller.state.phase is Phase.DONE
    assert isinstance(agent.commands[-1], EndJob)
    assert replay(agent.journal.records) == controller.state
    assert check_history(agent.journal.records) == []
    assert [record.number for record in agent.journal.records] == list(
        range(len(agent.journal.records))
    )


def test_decisions_are_on_record_before_they_are_carried_out() -> None:
    agent = Agent(ListJournal())

    asyncio.run(train(agent))

    assert agent.commands
    assert agent.undecided == []


def test_one_sync_serves_all_events_that_come_while_it_runs() -> None:
    class SlowJournal(ListJournal):
        def sync(self) -> None:
            time.sleep(0.05)
            super().sync()

    async def report_many() -> ListJournal:
        journal = SlowJournal()
        agent = StillAgent(journal)
        await agent.begin()
        before = journal.syncs
        nodes = [NodeUp(0, f"node-{n}", "a", "host", 1, 2**30) for n in range(40)]
        await asyncio.gather(*(agent.post(node) for node in nodes))
        assert journal.durable == len(journal.records)
        assert journal.syncs - before <= 2
        return journal

    journal = asyncio.run(report_many())

    assert len(journal.records) == 42


def test_a_decision_is_synced_together_with_its_event() -> None:
    async def decide_once() -> None:
        agent = StillAgent(ListJournal())
        controller = await agent.begin()
        running = asyncio.ensure_future(controller.run())
        await asyncio.sleep(0.05)  # it waits for events
        before = agent.journal.syncs

        await agent.post(NodeUp(0, "a", "a", "host", 2, 1))
        while not any(isinstance(command, StartWorkers) for command in agent.commands):
            await asyncio.sleep(0.001)

        assert isinstance(agent.journal.records[-1].body, Decided)
        assert agent.journal.syncs - before == 1
        running.cancel()

    asyncio.run(decide_once())


def test_steps_are_folded_into_few_records() -> None:
    agent = Agent(ListJournal())
    agent.step_s = 0.01

    asyncio.run(train(agent))

    progress = [r.body for r in agent.journal.records if isinstance(r.body, Progress)]
    assert [(piece.first_step, piece.last_step) for piece in progress] == [(1, 6)]


def test_slow_steps_are_written_one_by_one() -> None:
    agent = Agent(ListJournal())
    agent.step_s = 30.0

    asyncio.run(train(agent))

    progress = [r.body for r in agent.journal.records if isinstance(r.body, Progress)]
    assert len(progress) == 6


def test_a_death_leads_to_a_new_generation_through_the_loop() -> None:
    agent = Agent(ListJournal())
    agent.die_at = 3

    controller = asyncio.run(train(agent))

    assert agent.die_at is None
    assert controller.state.phase is Phase.DONE
    assert controller.state.generation == 2
    assert controller.state.tally.steps_rolled_back == 3
    assert replay(agent.journal.records) == controller.state
    assert check_history(agent.journal.records) == []


def test_a_journal_that_cannot_be_written_ends_the_loop_before_anything_is_done() -> None:
    agent = Agent(ListJournal())
    agent.journal.room = 3  # the submission, the term and the node; not the decision to start

    with pytest.raises(StorageError, match="disk full"):
        asyncio.run(train(agent))

    assert agent.commands == []


def test_a_timer_is_written_down_only_if_it_matters() -> None:
    async def wait_for_room(settled_s: float) -> tuple[ListJournal, Controller]:
        journal = ListJournal()
        agent = StillAgent(journal)
        controller = await agent.begin()
        await agent.post(NodeUp(0, "a", "a", "host", 1, 2**30))
        agent.now_s = settled_s
        await agent.post(TimePassed(0))
        running = asyncio.ensure_future(controller.run())
        while not controller._inbox.empty():
            await asyncio.sleep(0)
        running.cancel()
        return journal, controller

    early, waiting = asyncio.run(wait_for_room(0.5))
    late, begun = asyncio.run(wait_for_room(1.5))

    assert waiting.state.phase is Phase.WAITING
    assert not any(isinstance(record.body, TimePassed) for record in early.records)
    assert begun.state.phase is not Phase.WAITING
    assert sum(isinstance(record.body, TimePassed) for record in late.records) == 1
    assert replay(early.records) == waiting.state
    assert replay(late.records) == begun.state


def test_what_is_decided_behind_a_backlog_bears_the_time_at_which_it_is_done() -> None:
    async def decide_late() -> ListJournal:
        agent = StillAgent(ListJournal())
        controller = await agent.begin(clock=lambda: 50.0)
        await agent.post(NodeUp(0, "a", "a", "host", 2, 2**30))
        running = asyncio.ensure_future(controller.run())
        while not agent.commands:
            await asyncio.sleep(0)
        running.cancel()
        assert replay(agent.journal.records) == controller.state
        return agent.journal

    journal = asyncio.run(decide_late())

    bodies = [record.body for record in journal.records]
    (decided,) = [body for body in bodies if isinstance(body, Decided)]
    assert decided.decision.at_s == 50.0
    assert [body.at_s for body in bodies if isinstance(body, NodeUp)] == [0.0]


def test_a_controller_that_starts_again_repeats_what_was_begun() -> None:
    agent = Agent(ListJournal())
    asyncio.run(train(agent))
    formed = next(
        place
        for place, record in enumerate(agent.journal.records)
        if isinstance(record.body, Decided) and isinstance(record.body.decision, Train)
    )
    second = Agent(ListJournal(agent.journal.records[:formed]))

    async def again() -> None:
        controller = await second.begin()
        task = asyncio.ensure_future(controller.run())
        await asyncio.wait_for(task, 10)

    asyncio.run(again())

    assert second.controller.state.phase is Phase.DONE
    assert second.controller.state.term == 2
    assert check_history(second.journal.records) == []
