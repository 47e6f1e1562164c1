"""A lease from its place in the queue to its release."""

from __future__ import annotations

import math

import anyio
import pytest
from fakes.leases import FakeHost, engine

from hostler.adapters.errors import TooManyRequests

pytestmark = pytest.mark.anyio


async def test_a_granted_lease_has_an_address() -> None:
    lease = FakeHost(grants=True).lease("m")
    assert (lease.settled, lease.granted, lease.address()) == (True, True, engine(1))
    assert await lease.wait(0)


async def test_a_refused_lease_raises_its_reason() -> None:
    lease = FakeHost(refuses=TooManyRequests("full")).lease("m")
    assert (lease.settled, lease.granted) == (True, False)
    with pytest.raises(TooManyRequests, match="full"):
        lease.address()


async def test_waiting_ends_after_its_time_or_when_the_lease_is_settled() -> None:
    lease = FakeHost().lease("m")
    assert not await lease.wait(0.001)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.wait, 60)
        await anyio.wait_all_tasks_blocked()
        lease.grant(engine())
    assert await lease.wait(60)


async def test_waiting_may_be_given_up_and_begun_again() -> None:
    lease = FakeHost().lease("m")
    with anyio.move_on_after(0.001):
        await lease.wait(math.inf)
    lease.grant(engine())
    assert await lease.wait(math.inf)


async def test_what_comes_after_the_last_wait_is_not_lost() -> None:
    lease = FakeHost().lease("m")
    assert not await lease.wait(0)
    lease.notify()
    lease.grant(engine())
    assert await lease.wait(0)


async def test_a_notification_ends_waiting_once() -> None:
    lease = FakeHost().lease("m")
    lease.notify()
    with anyio.fail_after(20):
        assert not await lease.wait(60)
    assert lease.take_notification()
    assert not lease.take_notification()
    assert not await lease.wait(0.001)


async def test_the_owner_is_asked_for_progress_and_told_of_the_release() -> None:
    host = FakeHost()
    lease = host.lease("m")
    assert (lease.progress().phase, lease.estimate_s()) == ("queued", 7.0)
    lease.release()
    lease.release()
    assert host.released == [lease]
