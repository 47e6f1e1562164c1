"""Subscriptions to a host, and streams to clients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import anyio
import pytest

from hostler.profiles.schema import Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import Snapshot, SupervisorEvent
from hostler.supervisor.events import MAX_BUFFERED_EVENTS
from hostler.supervisor.manager import EngineManager

pytestmark = pytest.mark.anyio
Scripted = Callable[..., Profile]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
EXCLUSIVE = SupervisorSettings(stop_grace_s=5, backoff_s=0.05, max_backoff_s=0.4)


async def test_a_slow_subscriber_gets_a_snapshot_instead_of_what_it_missed(
    scripted: Scripted, running: Running
) -> None:
    async with running(EngineManager([scripted("a")], EXCLUSIVE)) as manager, manager.events() as events:
        assert isinstance(await anext(events), Snapshot)
        for _ in range(MAX_BUFFERED_EVENTS + 1):
            await manager.replace_profiles([scripted("a")])
        missed: SupervisorEvent = await anext(events)
        assert isinstance(missed, Snapshot)
        with anyio.move_on_after(0.01) as nothing_more:
            await anext(events)
        assert nothing_more.cancelled_caught
