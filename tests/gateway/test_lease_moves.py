"""Queued requests that other hosts serve sooner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from fakes.leases import FakeHost, engine
from fakes.requests import make_context, target

from hostler.adapters.errors import TooManyRequests
from hostler.gateway.context import RequestContext
from hostler.gateway.gateway_settings import PlacementSettings
from hostler.gateway.lease_moves import LeaseMoves, MovedElsewhere, QueuedLease
from hostler.supervisor.contract import HostStatus, ProfileInfo
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.views import NO_OFFER, HostOffer, ServiceDistance

pytestmark = pytest.mark.anyio

FREE = HostOffer(distance=ServiceDistance(steps=0), phase="ready")
COLD = HostOffer(distance=ServiceDistance(steps=2, wait_s=1.0), load_s=1.0, load_measured=True)


class Queue:
    """Requests that wait at host `a`, and may go to the others."""

    def __init__(self, **hosts: FakeHost) -> None:
        self.now = 0.0
        self.hosts: dict[str, Any] = hosts
        self.moves = LeaseMoves(self.hosts, PlacementSettings(replica_wait_s=2.0), lambda: self.now)

    def context(self) -> RequestContext:
        context = make_context()
        context.candidates = tuple(target(name) for name in self.hosts)
        context.alternatives = context.candidates[1:]
        context.begin_attempt(context.candidates[0], hop=0, now=0.0)
        return context

    @contextmanager
    def waiting(self, context: RequestContext | None = None) -> Iterator[tuple[Lease, QueuedLease]]:
        lease = self.hosts["a"].lease("m")
        with self.moves.queued(
            context or self.context(), lease, lambda host, target: host.lease(target.model)
        ) as queued:
            yield lease, queued


def other(offered: HostOffer, **fields: Any) -> FakeHost:
    host = FakeHost(**fields)
    host.offered = offered
    return host


def test_a_free_slot_elsewhere_is_taken_and_handed_over() -> None:
    free = other(FREE, grants=True)
    queue = Queue(a=FakeHost(), b=free)
    with queue.waiting() as (lease, queued):
        queued.check_moved()
        queue.moves.look()
        assert lease.take_notification()
        with pytest.raises(MovedElsewhere) as moved:
            queued.check_moved()
    assert (moved.value.target.backend, moved.value.lease.granted) == ("b", True)
    # Whoever caught it releases it.
    assert free.released == []


def test_only_one_request_is_moved_to_one_slot() -> None:
    free = other(FREE)
    queue = Queue(a=FakeHost(), b=free)
    with queue.waiting() as (_, first), queue.waiting() as (_, second):

        def offer(model: str, prompt: object = None) -> HostOffer:
            return COLD if free.leases else FREE

        free.offer = offer  # type: ignore[method-assign]
        queue.moves.look()
        assert (first.second is not None, second.second is None) == (True, True)


def test_what_is_granted_first_counts_and_the_other_ticket_is_withdrawn() -> None:
    slow = other(COLD)
    queue = Queue(a=FakeHost(), b=slow)
    queue.now = 3.0
    with queue.waiting() as (lease, queued):
        queue.moves.look()
        assert len(slow.leases) == 1
        lease.grant(engine())
    assert slow.released == slow.leases
    assert queued.second is None


def test_one_load_at_a_time_is_begun_for_a_model() -> None:
    slow, slower = other(COLD), other(COLD)
    queue = Queue(a=FakeHost(), b=slow, c=slower)
    queue.now = 3.0
    with queue.waiting(), queue.waiting():
        for _ in range(3):
            queue.moves.look()
        assert (len(slow.leases), len(slower.leases)) == (1, 0)


def test_a_host_that_refuses_is_not_asked_again_for_the_request() -> None:
    full = other(FREE, refuses=TooManyRequests("full"))
    queue = Queue(a=FakeHost(), b=full)
    with queue.waiting() as (_, queued):
        for _ in range(3):
            queue.moves.look()
        queued.check_moved()
    assert len(full.leases) == 1
    assert full.released == full.leases


def test_a_request_that_is_about_to_be_granted_stays() -> None:
    free, own = other(FREE), FakeHost()
    own.position = None
    queue = Queue(a=own, b=free)
    with queue.waiting():
        queue.moves.look()
        assert free.leases == []


def test_requests_without_alternatives_and_background_work_stay() -> None:
    free = other(FREE)
    queue = Queue(a=FakeHost(), b=free)
    alone, background = queue.context(), queue.context()
    alone.alternatives, background.background = (), True
    with queue.waiting(alone), queue.waiting(background):
        queue.moves.look()
    assert free.leases == []


async def test_requests_are_looked_at_as_long_as_some_wait() -> None:
    free = other(NO_OFFER, grants=True)
    queue = Queue(a=FakeHost(), b=free)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.moves.run)
        with queue.waiting() as (lease, _), anyio.fail_after(20):
            await anyio.lowlevel.checkpoint()
            free.offered = FREE
            await lease.wait(20.0)
            assert free.asked.is_set()
        tasks.cancel_scope.cancel()


def test_a_replica_is_unloaded_some_time_after_its_last_request() -> None:
    queue = Queue(a=other(FREE), b=other(FREE))
    candidates = queue.context().candidates
    assert queue.moves.replica_keep_alive_s("b", candidates) == 300.0
    assert queue.moves.replica_keep_alive_s("a", candidates) is None
    assert queue.moves.replica_keep_alive_s("b", candidates[1:]) is None
    assert queue.moves.replica_keep_alive_s("cloud", (*candidates, target("cloud"))) is None
    queue.hosts["b"].status = HostStatus(profiles=(ProfileInfo(name="m", ttl_s=60.0),))
    assert queue.moves.replica_keep_alive_s("b", candidates) == 60.0
