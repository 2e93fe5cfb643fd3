"""A connection that is only held: its end tells at once that whoever was at the other end is gone.

Ray tells so too, but where a raylet dies together with its actors it waits a second for the head
to say why (measured: 1.0 to 1.4 s). As long as it is held a byte comes now and then: a sign of life
for a fifth of what a call through Ray takes; not from a process whose calls do not get through.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Final

SIGN_S: Final = 1.0
"""Between two signs of life."""
RETRY_S: Final = 0.25
"""Between two tries to reach a host that does not answer, or hangs up on everybody at once."""


async def open_line(host: str, is_well: Callable[[], bool]) -> tuple[str, int]:
    """Let others hold a line to this process, as long as it lives; returns host and port.

    Args:
        host: the address to listen on, so that nothing else is exposed.
        is_well: whether to give signs of life: it is of no use to be there alone.
    """

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        giving = asyncio.ensure_future(_give_signs(writer, is_well))
        with suppress(OSError):
            await reader.read()
        giving.cancel()
        writer.close()

    server = await asyncio.start_server(hold, host, 0)
    port: int = server.sockets[0].getsockname()[1]
    return host, port


async def until_gone(host: str, port: int, heard: Callable[[], object]) -> None:
    """Hold a line; return when the process at its other end is gone.

    A line that breaks proves nothing, a network may have dropped it: the process is gone if its
    host then refuses another one, because nobody listens there any more. A host that does not
    answer says nothing, nor does one that never let a line be held; other signs must do.

    Args:
        heard: called upon each sign of life.
    """
    was_held = False
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            if was_held:
                return
            await asyncio.Event().wait()  # somebody in between refuses
        except OSError:
            await asyncio.sleep(RETRY_S)
            continue
        was_held, began_s = True, time.monotonic()
        with closing(writer), suppress(OSError):
            while await reader.read(4096):
                heard()
        if time.monotonic() - began_s < RETRY_S:
            await asyncio.sleep(RETRY_S)


async def _give_signs(writer: asyncio.StreamWriter, is_well: Callable[[], bool]) -> None:
    while True:
        if is_well():
            writer.write(b"\n")
        await asyncio.sleep(SIGN_S)
