"""The daily spending limit that gateways have together."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from fakes.redis_server import RedisServer, needs_redis
from fakes.shared_gateways import BudgetGateway, budget_gateways
from fakes.store_client import until

from hostler.gateway.backends.cost import Reservation
from hostler.gateway.cluster.budget_books import Entry
from hostler.gateway.context import KeyRules

pytestmark = [pytest.mark.anyio, needs_redis]


def cost(amount: float, *, lone: bool = False) -> Reservation:
    return Reservation("cloud", "m", amount, lone)


async def reserved(gateway: BudgetGateway, wanted: Reservation) -> bool:
    return await gateway.spending.try_reserve(wanted)


def share(gateway: BudgetGateway) -> float:
    """What the gateway may spend without the store."""
    [book] = gateway.spending.books()
    return gateway.ledger.shares.room(book, gateway.spending.entry(book.name), gateway.ledger.wall())[0]


async def test_many_at_once_at_all_gateways_stay_within_the_limit(server: RedisServer, tmp_path: Path) -> None:
    admitted = []

    async def ask(gateway: BudgetGateway) -> None:
        if await reserved(gateway, cost(0.25)):
            admitted.append(gateway)

    async with budget_gateways(server.url, tmp_path, limit=5.0) as gateways:
        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(ask, gateways[number % 3])
        assert len(admitted) == 20
        assert all(each.ledger.connected for each in gateways)


async def test_costs_of_one_gateway_count_at_the_others(server: RedisServer, tmp_path: Path) -> None:
    async with budget_gateways(server.url, tmp_path, limit=1.0) as (first, second, third):
        wanted = cost(0.5)
        assert await reserved(first, wanted)
        await until(lambda: not third.spending.allows(cost(0.6)))
        assert not third.spending.exhausted_for(cost(0.6))
        first.spending.settle(wanted, 0.75)
        await until(lambda: second.spending.today == third.spending.today == 0.75)
        assert second.spending.exhausted_for(cost(0.3))
        assert not second.spending.limit_reached
        last = cost(0.25)
        assert await reserved(second, last)
        second.spending.settle(last, 0.25)
        await until(lambda: third.spending.limit_reached)


async def test_of_requests_of_unknown_cost_only_one_is_made_at_a_time(server: RedisServer, tmp_path: Path) -> None:
    async with budget_gateways(server.url, tmp_path, 2, limit=1.0) as (first, second):
        wanted = cost(0.02, lone=True)
        assert await reserved(first, wanted)
        assert not await reserved(second, cost(0.02, lone=True))
        first.spending.settle(wanted, 0.1)
        await until(lambda: second.spending.today == 0.1)
        assert await reserved(second, cost(0.02, lone=True))


async def test_without_the_store_each_gateway_spends_its_share(server: RedisServer, tmp_path: Path) -> None:
    async with budget_gateways(server.url, tmp_path, limit=10.0) as gateways:
        first = cost(1.0)
        assert await reserved(gateways[0], first)
        gateways[0].spending.settle(first, 1.0)
        await until(lambda: all(share(each) == pytest.approx(3.0) for each in gateways))
        server.kill()
        spent = 0
        for gateway in gateways:
            while await reserved(gateway, cost(1.0)):
                spent += 1
        assert spent == 9
        server.start()
        await until(lambda: all(each.ledger.connected for each in gateways))
        for gateway in gateways:
            assert not await reserved(gateway, cost(1.0))


async def test_without_a_share_nothing_is_spent_however_sums_are_rounded(server: RedisServer, tmp_path: Path) -> None:
    gateway = BudgetGateway(server.url, tmp_path, "alone", limit=5.0)
    gateway.ledger.shares.clear()
    rules = KeyRules(dollars_per_day=5.0)
    [book] = gateway.spending.books()
    day = gateway.keys._books("bob", rules)[0].name
    for step in range(300):
        spent, elsewhere = step * 0.0071, step * 0.0083
        for name, entry in (
            (book.name, Entry(sequence=step, used_a=elsewhere)),
            (day, Entry(sequence=step, used_b=elsewhere)),
        ):
            gateway.ledger._records.learn(name, {"other": entry})
        gateway.spending.adopt(book.name, Entry(used_a=spent))
        gateway.keys.adopt(day, Entry(used_b=spent))
        assert not gateway.spending.reserve(cost(0.5)), spent
        assert not gateway.spending.reserve(cost(0.5, lone=True)), spent
        assert gateway.spending.limit_reached, spent
        assert not gateway.keys.allows_cost("bob", rules, 0.5), spent


async def test_gateways_without_a_limit_ask_nobody(server: RedisServer, tmp_path: Path) -> None:
    async with budget_gateways(server.url, tmp_path, 1) as [gateway]:
        calls = gateway.store.calls["ok"]
        assert await gateway.spending.try_reserve(cost(100.0))
        assert gateway.store.calls["ok"] == calls


async def test_beyond_the_days_dollars_a_request_that_may_be_local_is_admitted_without_money(
    server: RedisServer, tmp_path: Path
) -> None:
    async with budget_gateways(server.url, tmp_path, 2) as (first, second):
        rules = KeyRules(dollars_per_day=0.5)
        assert await first.use(rules, dollars=0.4)
        await until(lambda: "bob" in second.keys.figures() and second.keys.figures()["bob"].dollars == 0.4)
        local = await second.keys.admit("bob", rules, prompt_tokens=0, dollars=0.2, has_local=True)
        assert local.reservation is not None
        assert (local.local_only, local.reservation.dollars) == (True, 0.0)
        refused = await second.keys.admit("bob", rules, prompt_tokens=0, dollars=0.2, has_local=False)
        assert "0.5 US dollars per day" in refused.refused


async def test_a_request_calls_the_store_twice_at_most_however_many_backends_fail(
    server: RedisServer, tmp_path: Path
) -> None:
    async with budget_gateways(server.url, tmp_path, 1, limit=100.0) as [gateway]:
        await until(lambda: gateway.store.calls["ok"] > 5)
        server("CONFIG", "RESETSTAT")
        for _ in range(50):
            for calls in range(4):
                wanted = Reservation("cloud", "m", 0.01, calls=calls)
                assert await gateway.spending.try_reserve(wanted)
                gateway.spending.settle(wanted, None if calls < 3 else 0.01, answered=calls == 3)
        assert gateway.spending.today == pytest.approx(0.5)
        # Beside them it reports now and then what it has, and that it is there.
        assert server.count("evalsha") <= 100 + 40
