"""Queueing: admission, waiting with heartbeats, the deadline, and queueing again for a lost engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio
import pytest
from fakes.leases import FakeHost, engine
from fakes.requests import FakeWriter, chat, make_context, signs_of_life, target

from hostler.adapters.canonical import LoadRequest, Origin
from hostler.adapters.errors import TooManyRequests, WaitTimeout
from hostler.gateway.context import Client, RequestContext
from hostler.gateway.gateway_settings import PlacementSettings
from hostler.gateway.lease_moves import LeaseMoves, MovedElsewhere
from hostler.gateway.middleware.queueing import QueueingMiddleware
from hostler.supervisor.contract import PromptIdentity
from hostler.supervisor.scheduling.errors import EngineLost
from hostler.supervisor.scheduling.views import HostOffer, ServiceDistance

pytestmark = pytest.mark.anyio


def queueing(host: FakeHost) -> QueueingMiddleware:
    hosts = cast(Any, {"pc": host})
    moves = LeaseMoves(hosts, PlacementSettings(), anyio.current_time)
    return QueueingMiddleware(cast(Any, None), hosts=hosts, moves=moves, clock=anyio.current_time)


def begun(backend: str = "pc", **fields: Any) -> RequestContext:
    """A request with an attempt under way."""
    context = make_context(started_at=anyio.current_time(), **fields)
    context.begin_attempt(target(backend), hop=0, now=anyio.current_time())
    return context


async def unreachable() -> None:
    raise AssertionError("must not be called")


async def test_a_granted_lease_is_passed_on_and_released() -> None:
    host = FakeHost(grants=True)
    context = begun(client=Client(name="anna", priority=3), request=chat(keep_alive_s=5.0))
    leases = []

    async def call_next() -> None:
        lease = context.current.lease
        assert lease is not None
        leases.append((lease, lease.granted, lease in host.released))

    await queueing(host).dispatch(context, call_next)
    [(lease, granted, released)] = leases
    assert (granted, released, host.released) == (True, False, [lease])
    assert host.requested == [
        {
            "model": "m", "client": "anna", "request_id": "req-1", "keep_alive_s": 5.0, "priority": 3,
            "client_port": 0, "prompt": PromptIdentity(), "waited_s": 0.0, "background": False,
        }
    ]  # fmt: skip
    assert context.waits == (0.0, 0.0)


async def test_a_request_that_moves_to_another_host_brings_the_time_it_has_waited() -> None:
    slow, free = FakeHost(), FakeHost(grants=True)
    free.offered = HostOffer(distance=ServiceDistance(steps=0), phase="ready")
    hosts, now = cast(Any, {"pc": slow, "other": free}), [0.0]
    moves = LeaseMoves(hosts, PlacementSettings(), lambda: now[0])
    context = begun()
    context.candidates = (target("pc"), target("other"))
    context.alternatives = context.candidates[1:]
    middleware = QueueingMiddleware(cast(Any, None), hosts=hosts, moves=moves, clock=lambda: now[0])

    async def look_later() -> None:
        await slow.asked.wait()
        now[0] = 5.0
        moves.look()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look_later)
        with pytest.raises(MovedElsewhere):
            await middleware.dispatch(context, unreachable)
    assert [asked["waited_s"] for asked in free.requested] == [5.0]


async def test_a_backend_without_a_supervisor_has_no_queue() -> None:
    host = FakeHost()
    context, called = begun("cloud"), []

    async def call_next() -> None:
        called.append(context.current.lease)

    await queueing(host).dispatch(context, call_next)
    assert (called, host.requested) == ([None], [])


async def test_a_request_to_unload_does_not_queue() -> None:
    host = FakeHost()
    origin = Origin(wire="ollama", operation="generate", body=b"")
    context, called = begun(request=LoadRequest(origin=origin, model="m", kind="unload")), []

    async def call_next() -> None:
        called.append(True)

    await queueing(host).dispatch(context, call_next)
    assert (called, host.requested) == ([True], [])


async def test_a_full_queue_is_the_hosts_error() -> None:
    host = FakeHost(refuses=TooManyRequests("full", retry_after_s=3.0))
    with pytest.raises(TooManyRequests) as refused:
        await queueing(host).dispatch(begun(), unreachable)
    assert refused.value.retry_after_s == 3.0
    assert len(host.released) == 1


async def waiting(host: FakeHost, context: RequestContext, then: Callable[[], Awaitable[None]]) -> None:
    """Dispatch, and do `then` while the request waits."""
    called = []

    async def call_next() -> None:
        called.append(True)

    async with signs_of_life(context), anyio.create_task_group() as tasks:
        tasks.start_soon(queueing(host).dispatch, context, call_next)
        await host.asked.wait()
        assert not called
        await then()
    assert called == [True]


async def test_a_waiting_stream_is_shown_progress_until_the_lease_is_granted() -> None:
    host, writer = FakeHost(), FakeWriter()

    async def grant_later() -> None:
        while len(writer.beats) < 3:  # noqa: ASYNC110 - beats come by the clock
            await anyio.sleep(0.005)
        host.leases[0].grant(engine())

    context = begun(writer=writer)
    host.waited = (2.5, 1.0)
    await waiting(host, context, grant_later)
    assert {beat.phase for beat in writer.beats} == {"queued"}
    assert context.waits == (1.5, 1.0)


async def test_a_new_phase_of_the_switch_is_shown_at_once() -> None:
    host, context = FakeHost(), begun()
    hastened = anyio.Event()
    context.hasten = hastened.set

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queueing(host).dispatch, context, anyio.lowlevel.checkpoint)
        await host.asked.wait()
        host.leases[0].notify()
        await hastened.wait()
        host.leases[0].grant(engine())


async def test_waiting_ends_at_the_deadline_with_the_estimate() -> None:
    host = FakeHost()
    context = begun()
    context.deadline = anyio.current_time() + 0.02
    with pytest.raises(WaitTimeout, match=r"gateway\.queue\.max_wait_s") as timeout:
        await queueing(host).dispatch(context, unreachable)
    assert timeout.value.retry_after_s == host.estimate
    assert host.leases[0] in host.released


async def test_the_switch_to_its_own_model_does_not_count_as_waiting() -> None:
    host, context = FakeHost(), begun()
    began_at = anyio.current_time()
    context.deadline = deadline = began_at + 0.05
    host.switching_s = lambda: anyio.current_time() - began_at
    host.waited = (0.5, 0.4)

    async def grant_late() -> None:
        await anyio.sleep(0.3)
        host.leases[0].switch_s = 0.4
        host.leases[0].grant(engine())

    await waiting(host, context, grant_late)
    # What comes after it has the rest of the time.
    assert context.deadline == deadline + 0.4


async def test_a_cancelled_request_leaves_the_queue() -> None:
    host = FakeHost()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queueing(host).dispatch, begun(), unreachable)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert host.leases[0] in host.released


async def test_a_lost_engine_is_queued_for_again() -> None:
    host, context = FakeHost(grants=True), begun()
    leases = []

    async def call_next() -> None:
        leases.append(context.current.lease)
        if len(leases) == 1:
            raise EngineLost("gone")

    await queueing(host).dispatch(context, call_next)
    assert leases == host.leases
    assert len(set(leases)) == 2
    assert set(host.released) == set(leases)


async def test_background_work_whose_lease_is_revoked_is_queued_again() -> None:
    host = FakeHost(grants=True)
    context = begun(request=chat())
    context.background = True
    ended: list[str] = []

    async def call_next() -> None:
        if len(host.leases) == 1:
            host.leases[0].revoke("preempted")
            await anyio.sleep_forever()
        ended.append("answered")

    await queueing(host).dispatch(context, call_next)
    assert ended == ["answered"]
    assert host.released == host.leases
    assert [each["background"] for each in host.requested] == [True, True]


async def test_background_work_has_no_deadline() -> None:
    host = FakeHost()
    context = begun(request=chat())
    context.background, context.deadline = True, None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queueing(host).dispatch, context, anyio.lowlevel.checkpoint)
        await host.asked.wait()
        await anyio.wait_all_tasks_blocked()
        assert host.released == []
        tasks.cancel_scope.cancel()
