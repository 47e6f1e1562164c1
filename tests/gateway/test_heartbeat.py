"""Signs of life for a client that waits for the first token of its stream."""

from __future__ import annotations

import anyio
import pytest
from fakes.requests import FakeWriter, make_context

from hostler.adapters.canonical import Progress
from hostler.gateway.context import RequestContext
from hostler.gateway.gateway_settings import SwitchingSettings
from hostler.gateway.heartbeat import Heartbeat

pytestmark = pytest.mark.anyio

NEVER_S = 600.0


class NotedWriter(FakeWriter):
    """A writer that lets a test wait until so many signs were sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = anyio.Condition()

    async def heartbeat(self, progress: Progress) -> None:
        await super().heartbeat(progress)
        async with self.sent:
            self.sent.notify_all()

    async def until(self, count: int) -> None:
        with anyio.fail_after(20):
            async with self.sent:
                while len(self.beats) < count:
                    await self.sent.wait()


def beating(writer: NotedWriter, *, after_s: float = 0.0, every_s: float = 0.005) -> tuple[RequestContext, Heartbeat]:
    context = make_context(writer=writer)
    settings = SwitchingSettings(progress_after_s=after_s, progress_every_s=every_s)
    heartbeat = Heartbeat(context, settings, anyio.current_time)
    heartbeat.start()
    return context, heartbeat


async def test_signs_come_until_the_first_token_whatever_is_waited_for() -> None:
    writer = NotedWriter()
    context, heartbeat = beating(writer)
    await writer.until(2)
    context.waits_for = lambda _: Progress(phase="loading", model="m")
    seen = len(writer.beats)
    await writer.until(seen + 2)
    assert writer.beats[0].phase == "queued"
    assert writer.beats[-1].phase == "loading"
    writer.committed = True
    seen = len(writer.beats)
    await anyio.sleep(0.05)  # many times the interval
    assert len(writer.beats) <= seen + 1
    await heartbeat.stop()


async def test_what_is_new_is_shown_at_once() -> None:
    writer = NotedWriter()
    context, heartbeat = beating(writer, every_s=NEVER_S)
    await writer.until(1)
    context.hasten()
    await writer.until(2)
    await heartbeat.stop()


async def test_the_first_sign_is_never_hastened() -> None:
    writer = NotedWriter()
    context, heartbeat = beating(writer, after_s=NEVER_S)
    context.hasten()
    await anyio.wait_all_tasks_blocked()
    assert not writer.beats
    await heartbeat.stop()


async def test_an_answer_that_begins_in_time_costs_no_task() -> None:
    writer = NotedWriter()
    _, heartbeat = beating(writer)
    writer.committed = True
    await anyio.sleep(0.02)
    assert not writer.beats
    await heartbeat.stop()


async def test_stopping_ends_a_sign_that_a_slow_client_holds_up() -> None:
    class SlowWriter(NotedWriter):
        async def heartbeat(self, progress: Progress) -> None:
            await super().heartbeat(progress)
            await anyio.sleep_forever()

    writer = SlowWriter()
    context, heartbeat = beating(writer)
    await writer.until(1)
    with anyio.fail_after(20):
        await heartbeat.stop()
    context.hasten()  # without effect
