"""The event loop: names that hang in their lookup do not hold it up."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hostler.gateway.server.event_loop import Loop

FOUND: list[tuple[Any, ...]] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]


class ScriptedLoop(Loop):
    """Looks up names once `answer` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = threading.Event()
        self.asked: list[str] = []
        self.look_up = self._look_up

    def _look_up(self, host: str, *_: object) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        assert self.answer.wait(30)
        if host == "unknown":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return FOUND


@contextmanager
def scripted() -> Iterator[tuple[asyncio.Runner, ScriptedLoop]]:
    loop = ScriptedLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        yield runner, loop


def test_the_loop_ends_while_a_lookup_hangs() -> None:
    with scripted() as (runner, loop):

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await loop.getaddrinfo("slow", 80)

        runner.run(give_up())
    assert not loop.answer.is_set()
    loop.answer.set()


def test_equal_lookups_share_a_thread_and_the_next_one_asks_again() -> None:
    with scripted() as (runner, loop):

        async def look_up() -> None:
            both = [asyncio.ensure_future(loop.getaddrinfo("name", 80)) for _ in range(2)]
            await asyncio.sleep(0)
            both[0].cancel()
            loop.answer.set()
            assert await both[1] == FOUND
            assert loop.asked == ["name"]
            assert await loop.getaddrinfo("name", 80) == FOUND
            assert loop.asked == ["name", "name"]

        runner.run(look_up())


def test_an_address_needs_no_lookup_and_an_unknown_name_is_an_error() -> None:
    with scripted() as (runner, loop):
        loop.answer.set()

        async def look_up() -> None:
            assert (await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM))[0][4] == ("127.0.0.1", 80)
            assert loop.asked == []
            with pytest.raises(socket.gaierror):
                await loop.getaddrinfo("unknown", 80)

        runner.run(look_up())
