"""What the controller needs from the world: a journal and hands."""

from collections.abc import Sequence
from typing import Protocol

from elasticmoe.controller.record import Record
from elasticmoe.messages.commands import Command


class Journal(Protocol):
    """The record a job is rebuilt from."""

    def read(self) -> Sequence[Record]:
        """All records of this and all earlier terms, in order.

        Raises:
            JournalError: the journal is damaged in a place other than its end.
        """
        ...

    def append(self, record: Record) -> None:
        """Write a record behind all others.

        Raises:
            StorageError: the record could not be written, and waiting would not help. The
                controller stops.
        """
        ...

    def sync(self) -> None:
        """Return when all that was written before this call survives a crash. Called on another
        thread than `append`.

        Raises:
            StorageError: the disk refuses, or was full for too long. The controller stops.
        """
        ...


class Effects(Protocol):
    """The hands of the controller."""

    async def carry_out(self, command: Command) -> None:
        """Begin to do what a command says and return soon; its outcome is an event.

        Must not wait for an event to be posted, and does not raise for what the world does:
        a failure is posted as `CommandFailed`.
        """
        ...
