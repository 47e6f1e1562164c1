"""Rounds of background tasks."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from hostler.gateway.cluster.rounds import Rounds

pytestmark = pytest.mark.anyio


async def test_a_round_begins_by_itself() -> None:
    rounds = Rounds(0.01, pause_s=0)
    with anyio.fail_after(5):
        await rounds.next()


async def test_a_round_begins_as_soon_as_it_is_asked_for() -> None:
    rounds = Rounds(3600, pause_s=0.01)
    rounds.soon()
    with anyio.fail_after(5):
        await rounds.next()
        rounds.soon()  # within a round: another one follows
        await rounds.next()


async def test_no_round_begins_without_a_pause_however_often_it_is_asked_for() -> None:
    rounds, began = Rounds(3600, pause_s=0.05), anyio.current_time()

    async def ask() -> None:
        while True:
            rounds.soon()
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        for _ in range(5):
            await rounds.next()
        tasks.cancel_scope.cancel()
    assert anyio.current_time() - began >= 4 * 0.05
