"""Background tasks of backends come and go."""

from __future__ import annotations

import anyio
import pytest

from hostler.gateway.backends.watches import Watches, Work

pytestmark = pytest.mark.anyio


def noting(notes: list[str], name: str) -> Work:
    async def work() -> None:
        notes.append(f"{name} starts")
        try:
            await anyio.sleep_forever()
        finally:
            notes.append(f"{name} ends")

    return work


async def test_what_is_added_runs_until_it_is_ended() -> None:
    watches, notes = Watches(), list[str]()
    watches.add("early", noting(notes, "early"))
    watches.add("never", noting(notes, "never"))
    watches.end("never")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watches.run)
        await anyio.wait_all_tasks_blocked()
        watches.add("late", noting(notes, "late"))
        watches.add("late", noting(notes, "late, too"))
        await anyio.wait_all_tasks_blocked()
        watches.end("late")
        watches.end("unknown")
        await anyio.wait_all_tasks_blocked()
        assert notes == ["early starts", "late starts", "late, too starts", "late ends", "late, too ends"]
        tasks.cancel_scope.cancel()
    assert notes[-1] == "early ends"
