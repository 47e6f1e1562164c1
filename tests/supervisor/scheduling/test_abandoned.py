"""Leases whose holder has vanished: released as soon as the engine does not work for them any more, and not before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
from fakes.leases import FakeHost, engine

from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.scheduling.abandoned import GIVE_UP_S, QUIET_CHECKS, AbandonedLeases
from hostler.supervisor.scheduling.lease import Lease

pytestmark = pytest.mark.anyio
ENGINE = msgspec.structs.replace(engine(1), parallel=2)


class Engine:
    """An engine with two slots that works on `active` requests, and the leases of its host."""

    def __init__(self) -> None:
        self.now = 100.0
        self.active: int | None = 0
        self.looks = 0
        self.looked = anyio.Event()
        self.leases: list[Lease] = []
        self.released: list[Lease] = []
        self.given_up: list[EngineAddress] = []
        self.subject = AbandonedLeases(
            self.look, self.release, self.given_up.append, lambda: self.leases, clock=lambda: self.now
        )
        self._released = anyio.Event()

    def lease(self, *, granted_at: float = 0.0) -> Lease:
        lease = Lease(FakeHost(), lease_id=len(self.leases) + 1, model="m", requested_at=granted_at)
        lease.grant(ENGINE)
        self.leases.append(lease)
        return lease

    def queued(self) -> Lease:
        lease = Lease(FakeHost(), lease_id=len(self.leases) + 1, model="other", requested_at=self.now)
        self.leases.append(lease)
        return lease

    async def look(self, model: str, generation: int) -> int | None:
        assert (model, generation) == (ENGINE.model, ENGINE.generation)
        self.looks += 1
        self.looked.set()
        self.looked = anyio.Event()
        return self.active

    def release(self, lease: Lease) -> None:
        self.leases.remove(lease)
        self.released.append(lease)
        self.subject.discard(lease)
        self._released.set()

    async def until_looked(self) -> None:
        with anyio.fail_after(30):
            await self.looked.wait()
            await anyio.wait_all_tasks_blocked()

    async def until_released(self) -> None:
        with anyio.fail_after(30):
            await self._released.wait()


@asynccontextmanager
async def abandoning(*leases: Lease, of: Engine) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        for lease in leases:
            of.subject.add(lease, tasks)
        yield
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("active", [0, None])
async def test_an_idle_engine_frees_all(active: int | None) -> None:
    subject = Engine()
    subject.active = active
    one, two = subject.lease(), subject.lease()
    async with abandoning(one, two, of=subject):
        await subject.until_released()
    assert subject.released == [one, two]


async def test_a_busy_engine_frees_what_it_has_room_for() -> None:
    subject = Engine()
    subject.active = 1
    one, two = subject.lease(), subject.lease()
    async with abandoning(one, two, of=subject):
        await subject.until_released()
        assert subject.released == [one]
        subject.active = 2
        await subject.until_looked()
        assert subject.released == [one]
        subject.active = 0
        await subject.until_looked()
    assert subject.released == [one, two]


async def test_free_slots_end_no_lease_whose_request_the_engine_works_on() -> None:
    subject = Engine()
    subject.active = 1  # of two slots; a lease that is granted in its place would make three
    lease = subject.lease()
    async with abandoning(lease, of=subject):
        for _ in range(QUIET_CHECKS + 1):
            await subject.until_looked()
            assert not subject.released
        subject.active = 0
        await subject.until_released()


async def test_a_request_on_its_way_to_the_engine_counts() -> None:
    subject = Engine()
    subject.active = 1  # the abandoned one: the other one has not arrived yet
    abandoned, _fresh = subject.lease(), subject.lease(granted_at=99.9)
    async with abandoning(abandoned, of=subject):
        await subject.until_looked()
        assert not subject.released
        subject.now += 2.0
        await subject.until_released()


async def test_an_abandoned_request_may_still_be_on_its_way() -> None:
    subject = Engine()
    lease = subject.lease(granted_at=99.9)
    async with abandoning(lease, of=subject):
        await subject.until_looked()
        assert not subject.released
        subject.now += 2.0
        await subject.until_released()


async def test_a_holder_that_is_back_keeps_its_lease() -> None:
    subject = Engine()
    subject.active = 2
    lease = subject.lease()
    async with abandoning(lease, of=subject):
        await subject.until_looked()
        subject.subject.discard(lease)
        subject.active = 0
        with anyio.move_on_after(2.0):
            await subject.until_released()
    assert not subject.released


async def test_short_requests_of_others_keep_no_abandoned_slot() -> None:
    subject = Engine()
    subject.active = 1
    abandoned = subject.lease()
    async with abandoning(abandoned, of=subject):
        for look in range(QUIET_CHECKS):
            # There is a request on its way at each look, and each time the engine works on one: theirs, it turns out.
            assert not subject.released, look
            short = subject.lease(granted_at=subject.now)
            await subject.until_looked()
            subject.leases.remove(short)
            subject.now += 2.0
    assert subject.released == [abandoned]


async def test_looks_that_find_the_abandoned_request_at_work_count_from_the_beginning() -> None:
    subject = Engine()
    abandoned = subject.lease()
    async with abandoning(abandoned, of=subject):
        for look in range(QUIET_CHECKS):
            subject.active = 2 if look == 1 else 1
            short = subject.lease(granted_at=subject.now)
            await subject.until_looked()
            subject.leases.remove(short)
            subject.now += 2.0
    assert not subject.released


async def test_an_engine_that_works_for_vanished_holders_alone_is_given_up_once_others_wait() -> None:
    subject = Engine()
    subject.active = 2
    one, two = subject.lease(), subject.lease()
    async with abandoning(one, of=subject):
        await subject.until_looked()
        subject.now += GIVE_UP_S
        queued = subject.queued()
        await subject.until_looked()
        assert not subject.given_up  # it still works for the other one
        subject.leases.remove(two)
        subject.leases.remove(queued)
        await subject.until_looked()
        assert not subject.given_up  # no request waits
        subject.queued()
        await subject.until_looked()
    assert subject.given_up == [ENGINE]
