"""Requests at a backend that says nothing: who is given up, and who is left alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from hostler.gateway.backends.stall_detector import StallDetector
from hostler.gateway.context import Attempt, Target
from hostler.supervisor.contract import EngineAddress

pytestmark = pytest.mark.anyio

TARGET = Target(backend="b", model="m", name_there="m")


def engine(port: int) -> EngineAddress:
    return EngineAddress(model="m", host="127.0.0.1", port=port, key="k", generation=1, context=1, parallel=1)


class Place:
    """A backend: who is there, whether it answers, whose requests were cut off, and how often it was looked at."""

    def __init__(self, *, needs_address: bool) -> None:
        self.answers = False
        self.looked: list[int | None] = []
        self.cut: list[int | None] = []
        self.moved = anyio.Event()
        self.during: Any = None
        self.pulse = StallDetector(
            "b", is_alive=self._alive, drop=self._cut, needs_address=needs_address, max_requests=1, silence_s=0.01
        )

    async def _alive(self, address: EngineAddress | None) -> bool:
        self.looked.append(address.port if address is not None else None)
        self._tell()
        if self.during is not None:
            self.during()
        return self.answers

    def _cut(self, address: EngineAddress | None) -> None:
        self.cut.append(address.port if address is not None else None)
        self._tell()

    def _tell(self) -> None:
        moved, self.moved = self.moved, anyio.Event()
        moved.set()

    def request(self, port: int | None = None) -> Attempt:
        attempt = Attempt(target=TARGET, address=None if port is None else engine(port))
        self.pulse.enter(attempt)
        return attempt


@asynccontextmanager
async def place(*, needs_address: bool = True) -> AsyncIterator[Place]:
    subject = Place(needs_address=needs_address)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.pulse.run)
        yield subject
        tasks.cancel_scope.cancel()


async def test_requests_at_a_vanished_engine_are_dropped() -> None:
    async with place() as here:
        here.request(1)
        with anyio.fail_after(5):
            while not here.cut:
                await here.moved.wait()
        assert here.cut[0] == 1


async def test_requests_at_a_busy_backend_continue() -> None:
    async with place() as here:
        here.answers = True
        here.request(1)
        with anyio.fail_after(5):
            while len(here.looked) < 3:
                await here.moved.wait()
        assert here.cut == []


async def test_an_address_that_serves_any_request_is_not_checked() -> None:
    async with place() as here:
        here.request(1)
        spoken = here.request(1)
        other = here.request(2)

        def speak() -> None:
            spoken.segments += 1

        here.during = speak
        with anyio.fail_after(5):
            while 2 not in here.cut:
                spoken.segments += 1
                await anyio.sleep(0.001)
        assert 1 not in here.cut
        here.pulse.leave(other)


async def test_a_segment_that_arrives_during_the_check_saves_the_request() -> None:
    async with place() as here:
        attempt = here.request(1)

        def speak() -> None:
            attempt.segments += 1

        here.during = speak
        with anyio.fail_after(5):
            while len(here.looked) < 3:
                await here.moved.wait()
        assert here.cut == []


async def test_requests_without_an_address_are_not_watched() -> None:
    async with place() as here:
        here.request(None)
        left = here.request(1)
        here.pulse.leave(left)
        await anyio.sleep(0.05)
        assert here.looked == []


async def test_a_plain_server_has_one_address_for_all_requests() -> None:
    async with place(needs_address=False) as here:
        here.request(None)
        here.request(None)
        with anyio.fail_after(5):
            while not here.cut:
                await here.moved.wait()
        assert here.cut[0] is None


async def test_a_backend_is_busy_above_max_requests() -> None:
    async with place(needs_address=False) as here:
        here.request(None)
        assert not here.pulse.busy
        second = here.request(None)
        assert here.pulse.busy
        here.pulse.leave(second)
        assert not here.pulse.busy
