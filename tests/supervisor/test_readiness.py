"""How often a starting engine is polled, and when a running one counts as unresponsive."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.readiness import poll_pause_s, wait_until_unresponsive

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("ready_after", [0.0, 0.1, 0.3, 0.6, 1.0, 1.3, 2.5, 300.0])
def test_readiness_is_noticed_after_a_hundredth_of_the_load_at_most(ready_after: float) -> None:
    assert poll_pause_s(ready_after) <= max(0.002, ready_after / 100)


def test_an_engine_that_loads_for_very_long_is_polled_four_times_a_second() -> None:
    assert poll_pause_s(3600.0) == 0.25


@asynccontextmanager
async def engine(answer: Callable[[SocketStream], Any]) -> AsyncIterator[EngineAddress]:
    async def serve(stream: SocketStream) -> None:
        # Some connections only check whether the port is open.
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            async with stream:
                await stream.receive()
                await answer(stream)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(SocketAttribute.local_port)
        yield EngineAddress(model="a", host="127.0.0.1", port=port, key="", generation=1, context=1, parallel=1)
        tasks.cancel_scope.cancel()


async def test_an_engine_that_answers_nothing_is_unresponsive() -> None:
    async with engine(lambda _: anyio.sleep_forever()) as address:
        with anyio.fail_after(20):
            await wait_until_unresponsive(address, 0.4)


async def test_an_engine_is_not_blamed_when_the_supervisor_itself_was_held_up() -> None:
    answers = 0
    enough = anyio.Event()

    async def answer(stream: SocketStream) -> None:
        nonlocal answers
        if answers == 0:
            time.sleep(0.6)  # noqa: ASYNC251 - blocks the event loop on purpose
        answers += 1
        if answers == 3:
            enough.set()
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def watch() -> None:
        await wait_until_unresponsive(address, 0.4)
        raise AssertionError("it counted as unresponsive")

    async with engine(answer) as address, anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        with anyio.fail_after(20):
            await enough.wait()
        tasks.cancel_scope.cancel()
