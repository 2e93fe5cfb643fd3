"""A journal whose disk is full: nothing is done that is not on record, and nothing is lost."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path

import pytest
from jobs_for_tests import tiny_job
from processes import PATIENCE_S, Follower, Processes

from elasticmoe.client import JobClient
from elasticmoe.cluster import journal_file
from elasticmoe.cluster.controller_actor import ControllerActor
from elasticmoe.cluster.intake import Intake
from elasticmoe.cluster.jobs import submit
from elasticmoe.cluster.journal_file import FileJournal, read_journal
from elasticmoe.cluster.outbox import NotYetError, Outbox
from elasticmoe.controller.decisions import Break
from elasticmoe.controller.history import check_history
from elasticmoe.controller.record import Decided, Record
from elasticmoe.errors import StorageError
from elasticmoe.messages.events import StopAsked

FAKE = "fake_worker:run_worker"
RECORDS = [Record(number, StopAsked(float(number), "somebody" * 10)) for number in range(4)]


class Disk:
    """Full on demand: half of a line still fits, or a server finds it out at the sync."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.code = self.sync_code = 0
        self.refused = threading.Event()
        self._write, self._fdatasync = journal_file._write, os.fdatasync
        self._synced_bytes = 0
        monkeypatch.setattr(journal_file, "_write", self.write)
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)
        monkeypatch.setattr(journal_file, "RETRY_S", 0.01)

    def fdatasync(self, fd: int) -> None:
        """If it fails, what was written since the last one is lost, and zeros are left."""
        size = os.fstat(fd).st_size
        if self.sync_code:
            os.pwrite(fd, bytes(max(size - self._synced_bytes, 0)), self._synced_bytes)
            self.refused.set()
            raise OSError(self.sync_code, os.strerror(self.sync_code))
        self._fdatasync(fd)
        self._synced_bytes = size

    def write(self, file: FileIO, line: bytes) -> None:
        if not self.code:
            return self._write(file, line)
        self._write(file, line[: len(line) // 2])
        self.refused.set()
        raise OSError(self.code, os.strerror(self.code))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_records_wait_for_room_in_their_order_and_no_half_line_is_left(
    tmp_path: Path, disk: Disk
) -> None:
    told: list[str] = []
    journal = FileJournal(tmp_path / "journal", "run", told.append)
    journal.append(RECORDS[0])
    disk.code = errno.ENOSPC
    journal.append(RECORDS[1])
    journal.append(RECORDS[2])

    assert journal.trouble == f"{tmp_path}/journal/00000001: No space left on device"
    assert len(told) == 1
    assert "the workers train on and nothing new is done" in told[0]
    assert read_journal(tmp_path / "journal") == RECORDS[:1]
    disk.refused.clear()
    syncing = threading.Thread(target=journal.sync)
    syncing.start()
    assert disk.refused.wait(10)  # it has tried again, and waits
    assert syncing.is_alive()

    disk.code = 0
    syncing.join(10)

    assert not syncing.is_alive()
    assert journal.trouble == ""
    assert "written again" in told[1]
    journal.append(RECORDS[3])
    assert read_journal(tmp_path / "journal") == RECORDS


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_what_a_disk_refuses_only_when_it_is_synced_is_written_anew(
    tmp_path: Path, disk: Disk, code: int
) -> None:
    told: list[str] = []
    journal = FileJournal(tmp_path / "journal", "run", told.append)
    journal.append(RECORDS[0])
    journal.sync()
    disk.sync_code = code
    journal.append(RECORDS[1])
    journal.append(RECORDS[2])
    syncing = threading.Thread(target=journal.sync)
    syncing.start()
    assert disk.refused.wait(10)
    disk.refused.clear()
    assert disk.refused.wait(10)  # it has tried again, and waits
    assert syncing.is_alive()
    assert journal.trouble == f"{tmp_path}/journal/00000001: {os.strerror(code)}"
    journal.append(RECORDS[3])

    disk.sync_code = 0
    syncing.join(10)
    journal.sync()

    assert not syncing.is_alive()
    assert journal.trouble == ""
    assert [text.split(" (")[0] for text in told] == [
        "the journal cannot be written",
        "the journal can be written again: what waited for it is on record now",
    ]
    assert read_journal(tmp_path / "journal") == RECORDS


def begin_a_term(tmp_path: Path) -> tuple[list[FileJournal], threading.Thread]:
    """Claim the next term on a thread; it is in the list once it has begun."""
    begun: list[FileJournal] = []
    beginning = threading.Thread(
        target=lambda: begun.append(FileJournal(tmp_path / "journal", "run"))
    )
    beginning.start()
    return begun, beginning


def test_a_controller_of_a_run_that_goes_on_waits_for_room_to_begin_its_term(
    tmp_path: Path, disk: Disk
) -> None:
    first = FileJournal(tmp_path / "journal", "run")
    first.append(RECORDS[0])
    first.sync()
    first.close()
    disk.code = errno.ENOSPC
    begun, beginning = begin_a_term(tmp_path)
    assert disk.refused.wait(10)
    disk.refused.clear()
    assert disk.refused.wait(10)  # it has tried again, and waits
    assert begun == []

    disk.code = 0
    beginning.join(10)

    (second,) = begun
    assert (second.term, second.read()) == (2, RECORDS[:1])
    second.append(RECORDS[1])
    second.sync()
    assert second.trouble == ""
    assert FileJournal(tmp_path / "journal", "run").read() == RECORDS[:2]


def test_a_new_run_is_refused_at_once_where_there_is_no_room(tmp_path: Path, disk: Disk) -> None:
    disk.code = errno.ENOSPC

    with pytest.raises(StorageError, match="No space left"):
        FileJournal(tmp_path / "journal", "run")


def test_a_term_that_began_after_the_next_one_does_not_count(tmp_path: Path, disk: Disk) -> None:
    FileJournal(tmp_path / "journal", "run").append(RECORDS[0])
    disk.code = errno.ENOSPC
    begun, beginning = begin_a_term(tmp_path)
    assert disk.refused.wait(10)
    third = tmp_path / "journal" / "00000003"
    third.write_bytes(
        journal_file._checked(
            b'{"term":3,"run":"run","read":{"00000001":%d}}' % first_bytes(tmp_path)
        )
    )
    disk.code = 0
    beginning.join(10)
    begun[0].append(Record(1, StopAsked(9.0, "too late")))

    assert begun[0].term == 2
    assert read_journal(tmp_path / "journal") == RECORDS[:1]


def first_bytes(tmp_path: Path) -> int:
    return (tmp_path / "journal" / "00000001").stat().st_size


def test_a_disk_that_stays_full_ends_in_one_error_that_says_what_to_do(
    tmp_path: Path, disk: Disk
) -> None:
    journal = FileJournal(tmp_path / "journal", "run", patience_s=0.05)
    journal.append(RECORDS[0])
    disk.code = errno.ENOSPC
    journal.append(RECORDS[1])

    with pytest.raises(StorageError, match=r"00000001: No space left .* 0.05 s\. Free some space"):
        journal.sync()

    assert read_journal(tmp_path / "journal") == RECORDS[:1]


def test_a_broken_disk_is_not_waited_for(tmp_path: Path, disk: Disk) -> None:
    journal = FileJournal(tmp_path / "journal", "run")
    disk.code = errno.EIO

    with pytest.raises(StorageError, match="Input/output error"):
        journal.append(RECORDS[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk of its own needs the right to mount one")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> None:
    """Leave no page free."""
    with suppress(OSError), (disk / "filling").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_on_a_real_disk_that_is_full_a_journal_goes_on_where_it_stopped(small_disk: Path) -> None:
    journal = FileJournal(small_disk / "journal", "run")
    journal.append(RECORDS[0])
    fill(small_disk)
    number = 1
    while not journal.trouble:  # what is left of its last page
        journal.append(Record(number, RECORDS[0].body))
        number += 1

    (small_disk / "filling").unlink()
    journal.sync()

    assert number > 2
    assert journal.trouble == ""
    assert len(read_journal(small_disk / "journal")) == number


def test_lines_that_wait_for_the_journal_are_taken_once() -> None:
    taken: list[list[bytes]] = []

    async def tell() -> None:
        has_room = asyncio.Event()

        async def take(node: str, lines: list[bytes]) -> None:
            taken.append(lines)
            await has_room.wait()

        intake = Intake(take)
        for _ in range(3):
            assert not await intake.has_taken("a", [b"1"], hold_s=0.001)
        has_room.set()
        assert await intake.has_taken("a", [b"1"])
        assert await intake.has_taken("a", [b"1"])  # another batch of the same text

    asyncio.run(tell())

    assert taken == [[b"1"], [b"1"]]


@pytest.mark.parametrize("begins, answer", [(True, "later"), (False, None)])
def test_an_agent_is_told_to_wait_for_a_controller_that_takes_over(
    begins: bool, answer: str | None
) -> None:
    async def tell() -> object:
        controller = ControllerActor.__new__(ControllerActor)
        controller._agents = None
        controller._beginning = asyncio.get_running_loop().create_future()
        if not begins:
            controller._beginning.set_result({})
        return await controller.post_reports("a", "incarnation", [b"1"])

    assert asyncio.run(tell()) == answer


@pytest.mark.parametrize("error,outlives", [(NotYetError, True), (ConnectionError, False)])
def test_an_agent_that_is_told_not_yet_keeps_its_patience(
    error: type[ConnectionError], outlives: bool
) -> None:
    """It ends when nobody answers; a controller that waits for its disk does answer."""
    patience_s = 0.3
    given: list[float] = []

    async def deliver(lines: list[bytes]) -> bool:
        given.append(time.monotonic())
        if given[-1] < given[0] + 3 * patience_s:
            raise error("no")
        return False

    async def run() -> str:
        outbox = Outbox(deliver, patience_s)
        outbox.put(b"1")
        return await outbox.run()

    reason = asyncio.run(run())

    assert (reason == "the controller has given this node up") == outlives
    assert (given[-1] - given[0] > 2 * patience_s) == outlives


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_job_outlives_its_full_journal_and_answers_a_fault_when_there_is_room(
    tmp_path: Path, small_disk: Path, processes: Processes
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal").symlink_to(small_disk)
    patience_s = 3.0
    handle = submit(tiny_job(tmp_path / "run", steps=600), entry=FAKE, patience_s=patience_s)
    client, follower = JobClient(handle.url, handle.token), Follower(handle)
    follower.until_step(12)  # from the seventh on a step has a bound
    workers = processes.workers()

    fill(small_disk)
    notice = follower.until(lambda event: "journal cannot be written" in str(event.fields))

    time.sleep(2 * patience_s)  # agents that hear nothing for so long would end the gang
    assert "No space left on device" in client.status()["journal_trouble"]
    assert processes.workers() == workers
    os.kill(workers[-1], signal.SIGKILL)
    processes.wait_until_gone(workers[-1:])
    time.sleep(1.0)
    on_record = [record.body for record in read_journal(small_disk)]
    assert not any(
        isinstance(one, Decided) and isinstance(one.decision, Break) for one in on_record
    )
    assert len(processes.workers()) == 1  # nobody was started in its place

    (small_disk / "filling").unlink()
    follower.until_step(1, generation=2)
    assert workers[0] in processes.workers()  # who was told late was not killed for it
    end = follower.until_kind("end")

    assert "nothing new is done" in str(notice.fields)
    assert end.fields["outcome"] == "done"
    assert end.fields["summary"]["faults"] == 1
    assert check_history(read_journal(small_disk)) == []


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_controller_that_is_killed_while_its_journal_is_full_is_waited_for(
    tmp_path: Path, small_disk: Path, processes: Processes
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal").symlink_to(small_disk)
    patience_s = 15.0  # Ray must have started another process by then
    handle = submit(tiny_job(tmp_path / "run", steps=300), entry=FAKE, patience_s=patience_s)
    Follower(handle).until_step(3)
    workers = processes.workers()
    fill(small_disk)

    os.kill(handle.pids["controller"], signal.SIGKILL)
    processes.wait_until_gone([handle.pids["controller"]])

    deadline_s = time.monotonic() + PATIENCE_S
    while not (small_disk / "00000002").exists():  # it is claimed, and cannot be begun
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    time.sleep(1.25 * patience_s)  # agents that hear nothing for so long would end the gang
    assert processes.workers() == workers
    assert not (small_disk / "00000002").read_bytes().endswith(b"\n")
    (small_disk / "filling").unlink()
    outcome = tmp_path / "run" / "outcome.json"
    while not outcome.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    summary = json.loads(outcome.read_text())
    assert (summary["outcome"], summary["faults"]) == ("done", 0)
    assert check_history(read_journal(small_disk)) == []
