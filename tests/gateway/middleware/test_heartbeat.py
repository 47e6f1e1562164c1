"""When a waiting client is shown progress."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.requests import FakeWriter, make_context

from hostler.adapters.canonical import Progress
from hostler.gateway.config import SwitchingSettings
from hostler.gateway.middleware.heartbeat import Heartbeat

pytestmark = pytest.mark.anyio

SETTINGS = SwitchingSettings(progress_after_s=1.0, progress_every_s=2.0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_heartbeats_start_after_the_request_and_then_come_regularly() -> None:
    clock, writer = Clock(), FakeWriter()
    heartbeat = Heartbeat(make_context(writer=writer, started_at=100.0), SETTINGS, clock)
    assert heartbeat.due == 101.0
    clock.now = 101.5
    await heartbeat.show(Progress(phase="queued", model="m"))
    assert (heartbeat.due, len(writer.beats)) == (103.5, 1)


async def test_a_hastened_heartbeat_is_never_before_the_first_one() -> None:
    clock = Clock()
    heartbeat = Heartbeat(make_context(started_at=100.0), SETTINGS, clock)
    heartbeat.hasten()
    assert heartbeat.due == 101.0
    clock.now = 101.0
    await heartbeat.show(Progress(phase="queued", model="m"))
    clock.now = 101.25
    heartbeat.hasten()
    assert heartbeat.due == 101.25


@pytest.mark.parametrize(("streaming", "progress"), [(False, "thinking"), (True, "off")])
async def test_no_heartbeats_without_a_stream_or_where_they_are_off(streaming: bool, progress: Any) -> None:
    settings = SwitchingSettings(progress=progress)
    heartbeat = Heartbeat(make_context(writer=FakeWriter(streaming=streaming)), settings, Clock())
    heartbeat.hasten()
    assert heartbeat.due == float("inf")
