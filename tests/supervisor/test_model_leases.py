"""Leases of models: extended by their holder, ended by time or by hand, kept over restarts."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from hostler.supervisor.contract import LONGEST_LEASE_S, SupervisorError
from hostler.supervisor.model_leases import MOST, ModelLeases

pytestmark = pytest.mark.anyio


class Day:
    """A clock of the day that tests set."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def test_a_holder_extends_its_lease_and_others_have_their_own(tmp_path: Path) -> None:
    changes: list[int] = []
    day = Day()
    leases = ModelLeases(tmp_path / "leases.json", lambda: changes.append(1), wall=day)
    first = await leases.add("a", "ann", 60)
    day.now += 30
    again = await leases.add("a", "ann", 60)
    other = await leases.add("a", "bob", 10)
    assert (again.id, again.created_at, again.expires_at) == (first.id, first.created_at, day.now + 60)
    assert [lease.id for lease in leases.active] == [other.id, first.id]
    assert len(changes) == 3


async def test_leases_survive_a_restart_unless_they_have_expired(tmp_path: Path) -> None:
    day = Day()
    before = ModelLeases(tmp_path / "leases.json", lambda: None, wall=day)
    long = await before.add("a", "ann", 3600)
    await before.add("b", "bob", 60)
    day.now += 120
    after = ModelLeases(tmp_path / "leases.json", lambda: None, wall=day)
    after.read()
    assert after.active == (long,)
    assert after.is_leased("a")
    assert not after.is_leased("b")


async def test_a_lease_expires_by_itself() -> None:
    ended = anyio.Event()
    leases = ModelLeases(None, lambda: ended.set() if not leases.active else None)
    await leases.add("a", "ann", 0.05)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leases.run)
        with anyio.fail_after(10):
            await ended.wait()
        tasks.cancel_scope.cancel()
    assert leases.active == ()


async def test_a_lease_that_is_added_while_others_are_awaited_expires_in_time() -> None:
    ended = anyio.Event()
    leases = ModelLeases(None, lambda: ended.set() if not leases.is_leased("b") and leases.is_leased("a") else None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leases.run)
        await anyio.wait_all_tasks_blocked()
        await leases.add("b", "bob", 0.05)
        await leases.add("a", "ann", 3600)
        with anyio.fail_after(10):
            await ended.wait()
        tasks.cancel_scope.cancel()


async def test_ends_by_id_and_with_its_profile(tmp_path: Path) -> None:
    leases = ModelLeases(tmp_path / "leases.json", lambda: None)
    one, two = await leases.add("a", "ann", 60), await leases.add("b", "ann", 60)
    assert await leases.end(one.id) == one
    assert await leases.end(one.id) is None
    await leases.keep_only({"b"})
    assert leases.active == (two,)
    await leases.keep_only(())
    assert leases.active == ()


async def test_bounds_duration_and_number() -> None:
    day = Day()
    leases = ModelLeases(None, lambda: None, wall=day)
    lease = await leases.add("a", "ann", LONGEST_LEASE_S)
    assert lease.expires_at == day.now + LONGEST_LEASE_S
    with pytest.raises(SupervisorError, match="30 days at most"):
        await leases.add("a", "ann", LONGEST_LEASE_S + 1)
    assert leases.active == (lease,)
    for number in range(MOST - 1):
        await leases.add("a", f"holder {number}", 60)
    with pytest.raises(SupervisorError, match="end some first"):
        await leases.add("a", "one more", 60)
    await leases.add("a", "ann", 60)
