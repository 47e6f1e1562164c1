"""The stall detector: whose requests are dropped, and whose continue."""

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


class FakeBackend:
    """A backend that responds or not, the ports that were checked and those whose requests were dropped."""

    def __init__(self) -> None:
        self.answers = False
        self.checked: list[int | None] = []
        self.dropped: list[int | None] = []
        self.moved = anyio.Event()
        self.during: Any = None
        self.detector = StallDetector("b", is_alive=self._alive, drop=self._drop, max_requests=1, silence_s=0.01)

    async def _alive(self, address: EngineAddress | None) -> bool:
        self.checked.append(address.port if address is not None else None)
        self._notify()
        if self.during is not None:
            self.during()
        return self.answers

    def _drop(self, address: EngineAddress | None) -> None:
        self.dropped.append(address.port if address is not None else None)
        self._notify()

    def _notify(self) -> None:
        moved, self.moved = self.moved, anyio.Event()
        moved.set()

    def request(self, port: int | None = None) -> Attempt:
        attempt = Attempt(target=TARGET, address=None if port is None else engine(port))
        self.detector.enter(attempt)
        return attempt


@asynccontextmanager
async def backend() -> AsyncIterator[FakeBackend]:
    subject = FakeBackend()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(subject.detector.run)
        yield subject
        tasks.cancel_scope.cancel()


async def test_requests_at_a_vanished_engine_are_dropped() -> None:
    async with backend() as subject:
        subject.request(1)
        with anyio.fail_after(20):
            while not subject.dropped:
                await subject.moved.wait()
        assert subject.dropped[0] == 1


async def test_requests_at_a_busy_backend_continue() -> None:
    async with backend() as subject:
        subject.answers = True
        subject.request(1)
        with anyio.fail_after(20):
            while len(subject.checked) < 3:
                await subject.moved.wait()
        assert subject.dropped == []


async def test_an_address_that_serves_any_request_is_not_checked() -> None:
    async with backend() as subject:
        subject.request(1)
        spoken = subject.request(1)
        other = subject.request(2)

        def speak() -> None:
            spoken.segments += 1

        subject.during = speak
        with anyio.fail_after(20):
            while 2 not in subject.dropped:
                spoken.segments += 1
                await anyio.sleep(0.001)
        assert 1 not in subject.dropped
        subject.detector.leave(other)


async def test_a_segment_that_arrives_during_the_check_saves_the_request() -> None:
    async with backend() as subject:
        attempt = subject.request(1)

        def speak() -> None:
            attempt.segments += 1

        subject.during = speak
        with anyio.fail_after(20):
            while len(subject.checked) < 3:
                await subject.moved.wait()
        assert subject.dropped == []


async def test_requests_that_wait_for_their_model_are_dropped_apart_from_those_at_an_engine() -> None:
    async with backend() as subject:
        subject.request(None)
        served = subject.request(1)

        def speak() -> None:
            served.segments += 1

        subject.during = speak
        with anyio.fail_after(5):
            while not subject.dropped:
                served.segments += 1
                await anyio.sleep(0.001)
        assert set(subject.dropped) == {None}


async def test_requests_that_have_ended_are_not_watched() -> None:
    async with backend() as subject:
        left = subject.request(1)
        subject.detector.leave(left)
        await anyio.sleep(0.05)
        assert subject.checked == []


async def test_a_plain_server_has_one_address_for_all_requests() -> None:
    async with backend() as subject:
        subject.request(None)
        subject.request(None)
        with anyio.fail_after(20):
            while not subject.dropped:
                await subject.moved.wait()
        assert subject.dropped[0] is None


async def test_a_backend_is_busy_above_max_requests() -> None:
    async with backend() as subject:
        subject.request(None)
        assert not subject.detector.busy
        second = subject.request(None)
        assert subject.detector.busy
        subject.detector.leave(second)
        assert not subject.detector.busy
