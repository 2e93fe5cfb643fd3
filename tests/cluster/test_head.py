"""Ray's head goes away and comes back, as a job sees it."""

import asyncio

import pytest

from elasticmoe.cluster.head import Head


async def listen(port: int = 0) -> asyncio.Server:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    return await asyncio.start_server(hang_up, "127.0.0.1", port)


@pytest.mark.timeout(30)
def test_a_head_that_comes_back_is_told_of_twice_and_one_that_does_not_is_lost() -> None:
    said: list[str] = []
    losses: list[str] = []

    async def lost(why: str) -> None:
        losses.append(why)

    async def until(count: int) -> None:
        while len(said) < count:
            await asyncio.sleep(0.01)

    async def main() -> None:
        server = await listen()
        port = server.sockets[0].getsockname()[1]
        watching = asyncio.create_task(Head(f"127.0.0.1:{port}", 2.5).watch(said.append, lost))
        await asyncio.sleep(0)
        server.close()
        await until(1)
        server = await listen(port)
        await until(2)
        assert losses == []
        server.close()
        await watching

    asyncio.run(main())

    assert "does not answer; training goes on without it, for 2 s at most" in said[0]
    assert "is back after" in said[1]
    assert len(said) == 3
    assert losses == ["the loss of Ray's head (2 s without answer)"]


def test_patience_follows_what_ray_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "8")

    assert Head("127.0.0.1:1").patience_s == 6.0
