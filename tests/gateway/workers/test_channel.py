"""A channel between two processes: calls get their answers, also those that nothing waits for any more."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from hostler.gateway.workers.channel import Channel, ChannelClosed
from hostler.gateway.workers.frames import (
    FrameFromWorker,
    FrameToWorker,
    ModelsRefreshed,
    RefreshModels,
    StateQuery,
    frames_from_worker,
    frames_to_worker,
)

pytestmark = pytest.mark.anyio


class Ends:
    """Both ends of a channel, and what each has received."""

    def __init__(self) -> None:
        self.to_main: list[Any] = []
        self.to_worker: list[Any] = []
        self.arrived = anyio.Event()
        self.worker: Channel[FrameToWorker] = Channel(frames_to_worker(), self._receive_in_worker)
        self.main: Channel[FrameFromWorker] = Channel(frames_from_worker(), self._receive_in_main)

    def _receive_in_worker(self, frame: FrameToWorker) -> None:
        self.to_worker.append(frame)
        if isinstance(frame, ModelsRefreshed):
            self.worker.answered(frame.number, frame.asked)
        self.arrived.set()

    def _receive_in_main(self, frame: FrameFromWorker) -> None:
        self.to_main.append(frame)
        self.arrived.set()

    async def next(self) -> None:
        """Wait for the next frame, at either end."""
        with anyio.fail_after(20):
            await self.arrived.wait()
        self.arrived = anyio.Event()


@asynccontextmanager
async def channel(*early: StateQuery) -> AsyncIterator[Ends]:
    """The main process sends `early` before its end is connected."""
    ends, (ours, theirs) = Ends(), socket.socketpair()
    for frame in early:
        ends.main.send(frame)
        await anyio.wait_all_tasks_blocked()
    await ends.worker.connect(theirs)
    await ends.main.connect(ours)
    try:
        yield ends
    finally:
        ends.main.close()
        ends.worker.close()
        with anyio.fail_after(20):
            await ends.main.closed.wait()
            await ends.worker.closed.wait()


async def test_what_is_sent_before_there_is_a_connection_arrives_in_order() -> None:
    async with channel(StateQuery(1), StateQuery(2)) as ends:
        ends.main.send(StateQuery(3))
        with anyio.fail_after(20):
            while len(ends.to_worker) < 3:
                await ends.next()
        assert ends.to_worker == [StateQuery(1), StateQuery(2), StateQuery(3)]


async def test_a_call_returns_its_answer() -> None:
    async with channel() as ends, anyio.create_task_group() as tasks:
        answers: list[bool] = []

        async def call() -> None:
            answers.append(await ends.worker.call(RefreshModels))

        tasks.start_soon(call)
        await ends.next()
        ends.main.send(ModelsRefreshed(ends.to_main[0].number, True))
        await ends.next()
        await anyio.wait_all_tasks_blocked()
        assert answers == [True]


async def test_the_answer_to_a_cancelled_call_is_handed_over() -> None:
    async with channel() as ends:
        late: list[bool] = []
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def call() -> None:
                    await ends.worker.call(RefreshModels, late.append)

                tasks.start_soon(call)
                await ends.next()
                scope.cancel()
        ends.main.send(ModelsRefreshed(ends.to_main[0].number, True))
        await ends.next()
        assert late == [True]


async def test_calls_end_with_the_other_process() -> None:
    async with channel() as ends:
        ends.main.close()
        with pytest.raises(ChannelClosed):
            await ends.worker.call(RefreshModels)
        await ends.worker.closed.wait()
        with pytest.raises(ChannelClosed):
            await ends.worker.call(RefreshModels)


async def test_a_call_whose_frame_cannot_be_written_leaves_nothing_behind() -> None:
    async with channel() as ends:
        with pytest.raises(OverflowError):
            await ends.worker.call(lambda number: RefreshModels(number + 2**64))
        assert ends.worker._calls == {}


async def test_a_frame_that_cannot_be_handled_does_not_stop_those_after_it(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    handled = anyio.Event()

    def handle(frame: FrameToWorker) -> None:
        assert isinstance(frame, StateQuery)
        if frame.number == 1:
            raise LookupError("on purpose")
        handled.set()

    worker: Channel[FrameToWorker] = Channel(frames_to_worker(), handle)
    main: Channel[FrameFromWorker] = Channel(frames_from_worker(), lambda frame: None)
    await worker.connect(theirs)
    await main.connect(ours)
    main.send(StateQuery(1))
    main.send(StateQuery(2))
    with anyio.fail_after(20):
        await handled.wait()
    main.close()
    await worker.closed.wait()
    await main.closed.wait()
    assert "a frame (StateQuery) could not be handled" in caplog.text
