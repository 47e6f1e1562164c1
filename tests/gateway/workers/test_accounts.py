"""Limits and costs of several workers are counted once, in the main process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from hostler.gateway.backends.cost import DailySpending, Reservation, SpendingTracker
from hostler.gateway.context import KeyRules
from hostler.gateway.key_usage import KeyUsage
from hostler.gateway.workers.accounts import WorkerAccounts, WorkerKeyAccounts, WorkerSpending
from hostler.gateway.workers.channel import Channel
from hostler.gateway.workers.frames import (
    AdmitKey,
    FrameToWorker,
    ReserveMoney,
    SettleKey,
    SettleMoney,
    SpendingState,
)

NOON = 1_800_000_000.0
RULES = KeyRules(requests_per_minute=3, tokens_per_day=10_000)
NOTHING = SpendingState(DailySpending(day=""), 0.0, 0.0, 0)


class LateChannel:
    """A channel whose calls are cancelled, and answered after that."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.sent: list[Any] = []

    def send(self, frame: object) -> None:
        self.sent.append(frame)

    async def call(self, make: Any, on_late: Any) -> Any:
        self.sent.append(make(7))
        on_late(self.answer)
        raise TimeoutError("instead of a cancellation")


def tracker(folder: Path, limit: float | None = 1.0) -> SpendingTracker:
    return SpendingTracker(folder / "spent.json", limit, lambda: NOON)


def admit(number: int, *, dollars: float = 0.0) -> AdmitKey:
    return AdmitKey(number, "bob", RULES, 100, dollars, True)


@pytest.mark.anyio
async def test_a_limit_holds_over_all_workers(tmp_path: Path) -> None:
    usage = KeyUsage(tmp_path / "usage.json", lambda: NOON)
    workers = [WorkerAccounts(usage, tracker(tmp_path)) for _ in range(2)]
    admissions = [await workers[number % 2].admit(admit(number)) for number in range(5)]
    assert [each.reservation is not None for each in admissions] == [True, True, True, False, False]
    assert "3 requests per minute" in admissions[-1].refused


@pytest.mark.anyio
async def test_what_a_dead_worker_has_not_settled_counts_as_used(tmp_path: Path) -> None:
    usage, spending = KeyUsage(tmp_path / "usage.json", lambda: NOON), tracker(tmp_path)
    worker = WorkerAccounts(usage, spending)
    reservation = (await worker.admit(admit(1))).reservation
    assert reservation is not None
    assert await worker.reserve_money(ReserveMoney(1, Reservation("cloud", "m", 0.25)))
    worker.close()
    assert usage.figures()["bob"].tokens == reservation.tokens
    assert spending.today == 0.25
    assert spending.in_progress == 0
    worker.settle_key(SettleKey(reservation, 1, 1, 0.0))
    assert usage.figures()["bob"].tokens == reservation.tokens


@pytest.mark.anyio
async def test_money_is_reserved_once_for_all_workers(tmp_path: Path) -> None:
    spending = tracker(tmp_path)
    workers = [WorkerAccounts(None, spending) for _ in range(2)]
    asked = [ReserveMoney(1, Reservation("cloud", "m", 0.6)) for _ in workers]
    granted = [await worker.reserve_money(frame) for worker, frame in zip(workers, asked, strict=True)]
    assert granted == [True, False]
    workers[0].settle_money(SettleMoney(1, asked[0].wanted, 0.1, True))
    assert spending.today == pytest.approx(0.1)
    assert await workers[1].reserve_money(asked[1])


def test_costs_without_a_limit_are_added_up_without_having_been_reserved(tmp_path: Path) -> None:
    spending = tracker(tmp_path, limit=None)
    WorkerAccounts(None, spending).settle_money(SettleMoney(-1, Reservation("cloud", "m", 0.6), 0.1, True))
    assert spending.by_backend == {"cloud": 0.1}


def test_what_was_never_reserved_is_not_settled(tmp_path: Path) -> None:
    spending = tracker(tmp_path)
    WorkerAccounts(None, spending).settle_money(SettleMoney(9, Reservation("cloud", "m", 0.6), 0.1, True))
    assert spending.today == 0


def test_a_worker_decides_by_what_all_have_spent() -> None:
    channel = cast(Channel[FrameToWorker], LateChannel(None))
    spending = WorkerSpending(channel, 1.0, NOTHING, lambda: NOON)
    wanted = Reservation("cloud", "m", 0.6)
    day = spending.day.day
    assert spending.allows(wanted)
    spending.update(SpendingState(DailySpending(day=day), 0.0, 0.5, 1))
    assert not spending.allows(wanted)
    assert not spending.exhausted_for(wanted)
    assert not spending.allows(Reservation("cloud", "m", 0.1, lone=True))
    spending.update(SpendingState(DailySpending(day=day, spent={"cloud": 0.4}), 0.6, 0.0, 0))
    assert spending.limit_reached


@pytest.mark.anyio
async def test_what_was_granted_to_a_cancelled_request_is_given_back(tmp_path: Path) -> None:
    usage = KeyUsage(tmp_path / "usage.json", lambda: NOON)
    admission = await usage.admit("bob", RULES, prompt_tokens=1, dollars=0.0, has_local=True)
    keys = LateChannel(admission)
    with pytest.raises(TimeoutError):
        await WorkerKeyAccounts(cast(Channel[FrameToWorker], keys)).admit(
            "bob", RULES, prompt_tokens=1, dollars=0.0, has_local=True
        )
    assert keys.sent[1:] == [SettleKey(admission.reservation, 0, 0, 0.0)]
    money, wanted = LateChannel(True), Reservation("cloud", "m", 0.6)
    with pytest.raises(TimeoutError):
        await WorkerSpending(cast(Channel[FrameToWorker], money), 1.0, NOTHING, lambda: NOON).try_reserve(wanted)
    assert money.sent[1:] == [SettleMoney(7, wanted, None, False)]


@pytest.mark.anyio
async def test_what_is_granted_to_a_worker_that_has_died_is_given_back(tmp_path: Path) -> None:
    usage, spending = KeyUsage(tmp_path / "usage.json", lambda: NOON), tracker(tmp_path)
    worker = WorkerAccounts(usage, spending)
    worker.close()
    assert (await worker.admit(admit(1))).reservation is not None
    assert await worker.reserve_money(ReserveMoney(2, Reservation("cloud", "m", 0.25)))
    assert (usage.figures()["bob"].tokens, usage.figures()["bob"].reserved_tokens) == (0, 0)
    assert (spending.today, spending.in_progress) == (0, 0)
