"""Waits that the gateway's stop ends."""

from __future__ import annotations

import anyio
import pytest

from hostler.adapters.errors import ShuttingDown
from hostler.gateway.backends.cancellable_sleep import CancellableSleeps

pytestmark = pytest.mark.anyio


async def test_stopping_ends_every_wait() -> None:
    sleeps, ended = CancellableSleeps(), []

    async def wait() -> None:
        with pytest.raises(ShuttingDown), sleeps.scope():
            await anyio.sleep_forever()
        ended.append(True)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        sleeps.stop()
    assert len(ended) == 3


async def test_after_stopping_no_wait_starts() -> None:
    sleeps = CancellableSleeps()
    sleeps.stop()
    with pytest.raises(ShuttingDown), sleeps.scope():
        raise AssertionError("must not be entered")


async def test_a_wait_that_ends_by_itself_raises_nothing() -> None:
    sleeps = CancellableSleeps()
    with sleeps.scope():
        await anyio.lowlevel.checkpoint()
    sleeps.stop()


async def test_another_cancellation_is_not_taken_for_the_stop() -> None:
    sleeps = CancellableSleeps()
    with anyio.CancelScope() as scope:
        with sleeps.scope():
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
