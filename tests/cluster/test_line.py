"""A line that is held to a process: real connections, of this process to itself or a child."""

import asyncio
import socket
import sys

import pytest

from elasticmoe.cluster.line import SIGN_S, open_line, until_gone

LISTENER = """
import asyncio
from elasticmoe.cluster.line import open_line

async def main():
    _, port = await open_line("127.0.0.1", lambda: True)
    print(port, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
SOON_S = 5.0


def test_the_end_of_the_process_at_the_other_end_is_told_at_once() -> None:
    async def scenario() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", LISTENER, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        gone = asyncio.ensure_future(until_gone("127.0.0.1", port, list))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(gone), 0.2)

        process.kill()
        await process.wait()

        await asyncio.wait_for(gone, SOON_S)

    asyncio.run(scenario())


def test_a_line_that_breaks_with_the_process_alive_is_taken_up_again() -> None:
    async def scenario() -> None:
        held: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        server = await asyncio.start_server(
            lambda reader, writer: held.put_nowait(writer), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        gone = asyncio.ensure_future(until_gone("127.0.0.1", port, list))

        (await asyncio.wait_for(held.get(), SOON_S)).close()

        again = await asyncio.wait_for(held.get(), SOON_S)
        assert not gone.done()
        server.close()
        again.close()
        await asyncio.wait_for(gone, SOON_S)

    asyncio.run(scenario())


def test_a_line_that_could_never_be_held_says_nothing() -> None:
    async def scenario() -> None:
        with socket.socket() as nobody:  # bound, so that nobody else has it; it does not listen
            nobody.bind(("127.0.0.1", 0))
            gone = asyncio.ensure_future(until_gone(*nobody.getsockname(), list))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(gone, 0.3)

    asyncio.run(scenario())


def test_a_line_that_is_held_gives_signs_of_life_and_is_closed_when_nobody_wants_it() -> None:
    async def scenario() -> None:
        signs: asyncio.Queue[float] = asyncio.Queue()
        clock = asyncio.get_running_loop().time
        host, port = await open_line("127.0.0.1", lambda: True)
        gone = asyncio.ensure_future(until_gone(host, port, lambda: signs.put_nowait(clock())))

        first_s, *_, last_s = [await asyncio.wait_for(signs.get(), SOON_S) for _ in range(3)]
        assert SIGN_S < last_s - first_s < 2 * SIGN_S + SOON_S

        gone.cancel()
        async with asyncio.timeout(SOON_S):
            while len(asyncio.all_tasks()) > 1:  # the server's end of the line notices
                await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_a_process_that_is_not_well_gives_no_signs_but_its_line_is_held() -> None:
    async def scenario() -> None:
        signs: list[bool] = []
        answers: asyncio.Queue[bool] = asyncio.Queue()

        def is_well() -> bool:
            answers.put_nowait(not signs)
            return not signs

        host, port = await open_line("127.0.0.1", is_well)
        gone = asyncio.ensure_future(until_gone(host, port, lambda: signs.append(True)))
        given = 0
        while await asyncio.wait_for(answers.get(), SOON_S):
            given += 1
        assert not await asyncio.wait_for(answers.get(), SOON_S)

        assert len(signs) == given > 0
        assert not gone.done()
        gone.cancel()

    asyncio.run(scenario())
