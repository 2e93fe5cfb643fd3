import json
from pathlib import Path

import pytest
from event_server import FakeController, end_line, line, serving, step_line

from elasticmoe.client import JobClient
from elasticmoe.errors import ClusterError


def test_a_lost_stream_is_taken_up_behind_the_last_line_that_came() -> None:
    lines = [step_line(1, 1), step_line(2, 2), line(3, "story", text="x"), end_line(4)]

    with serving(FakeController(lines, lines_per_connection=2)) as controller:
        found = [event.number for event in JobClient(controller.url).events()]

    assert found == [1, 2, 3, 4]
    assert controller.asked == ["/events?after=0", "/events?after=2"]


def test_a_controller_that_moved_is_found_through_the_jobs_directory(tmp_path: Path) -> None:
    with serving(FakeController([step_line(1, 1), end_line(2)])) as controller:
        facts = {"url": controller.url, "token": "secret"}
        (tmp_path / "service.json").write_text(json.dumps(facts))
        gone = JobClient("http://127.0.0.1:9", "old", tmp_path)

        found = [event.kind for event in gone.events()]

    assert found == ["step", "end"]


def test_asking_without_the_token_is_refused_and_says_so() -> None:
    with serving(FakeController([])) as controller:
        JobClient(controller.url, "secret").stop()

        with pytest.raises(ClusterError, match="/stop answered 401"):
            JobClient(controller.url, "wrong").stop()

    assert controller.asked == ["/stop", "/stop"]


def test_a_directory_without_a_running_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no job runs in"):
        JobClient.of_directory(tmp_path)


def test_a_controller_that_left_an_outcome_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text("{}")

    with pytest.raises(ClusterError, match="lost the controller"):
        next(JobClient("http://127.0.0.1:9", None, tmp_path).events())
