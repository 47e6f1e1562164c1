"""What gateways that do not return leave in the budgets of the others: what they had reserved is used, and none of it stays for ever."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes.redis_server import RedisServer, needs_redis
from fakes.shared_gateways import BudgetGateway, budget_gateways, day_book
from fakes.store_client import until

from hostler.gateway.backends.cost import Reservation
from hostler.gateway.context import KeyRules

pytestmark = [pytest.mark.anyio, needs_redis]

PREFIX = "hostler:home:"
MINUTE_BOOK = "budget:minute:bob"
RULES = KeyRules(tokens_per_minute=5000, tokens_per_day=5000)


def leave_behind(
    server: RedisServer, book: str, *, used: int = 0, reserved: Sequence[float] = (0, 0), open_: int = 0, ago_s: float
) -> None:
    """Have an entry in a book of a gateway that has crashed, and answered its last request so long ago."""
    window = [[time.time() - ago_s, 1, used]] if book == MINUTE_BOOK else []
    entry = [1, 0 if window else used, 0, *reserved, open_, window]
    server("HSET", PREFIX + book, "crashed", json.dumps(entry))


async def test_an_entry_of_a_minute_that_is_over_is_removed_with_its_gateway(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with budget_gateways(server.url, tmp_path, 2) as (first, second):
        assert await first.use(RULES, 1)
        leave_behind(server, MINUTE_BOOK, used=10, reserved=(0, 3000), open_=1, ago_s=700)
        for gateway in (first, second, first, second):
            assert await gateway.use(RULES, 1)
        await until(lambda: "crashed" not in server("HKEYS", PREFIX + MINUTE_BOOK))
        assert await second.use(RULES, 1)
        assert all(each.ledger.connected for each in (first, second))
        assert "lost budgets" not in caplog.text


async def test_an_entry_of_the_last_minute_stays_and_counts(server: RedisServer, tmp_path: Path) -> None:
    async with budget_gateways(server.url, tmp_path, 1) as [gateway]:
        assert await gateway.use(RULES, 1)
        leave_behind(server, MINUTE_BOOK, used=5000, ago_s=5)
        assert await gateway.admit(RULES) is None
        assert "crashed" in server("HKEYS", PREFIX + MINUTE_BOOK)


async def test_what_it_had_reserved_in_a_minute_is_not_withheld_without_the_store_for_ever(
    server: RedisServer, tmp_path: Path
) -> None:
    rules = KeyRules(tokens_per_minute=5000)
    async with budget_gateways(server.url, tmp_path, 1) as [gateway]:
        assert await gateway.use(rules, 1)
        leave_behind(server, MINUTE_BOOK, reserved=(0, 5000), open_=1, ago_s=100)
        assert await gateway.use(rules, 1)
        [limit] = gateway.keys.limits("bob", rules)
        assert limit.remaining == 4998
        server.kill()
        assert await gateway.use(rules, 1)


async def test_what_it_had_reserved_of_a_day_is_used(server: RedisServer, tmp_path: Path) -> None:
    async with budget_gateways(server.url, tmp_path, 1) as [gateway]:
        assert await gateway.use(RULES, 1)
        leave_behind(server, day_book(gateway), used=1000, reserved=(3000, 0), open_=1, ago_s=0)
        assert await gateway.use(RULES, 1)
        assert gateway.known_tokens() == 4002
        minute, day = (gateway.keys.limits("bob", each)[0] for each in (KeyRules(tokens_per_minute=5000), RULES))
        assert (minute.remaining, day.remaining) == (4998, 998)


async def test_a_request_that_it_had_open_keeps_no_other_from_being_the_only_one(
    server: RedisServer, tmp_path: Path
) -> None:
    lone = Reservation("cloud", "m", 0.1, True)
    async with budget_gateways(server.url, tmp_path, 1, limit=1.0) as [gateway]:
        first = Reservation("cloud", "m", 0.1)
        assert await gateway.spending.try_reserve(first)
        gateway.spending.settle(first, 0.1)
        leave_behind(server, _spending_book(gateway), reserved=(0.3, 0), open_=1, ago_s=0)
        assert await gateway.spending.try_reserve(lone)
        assert gateway.spending.today == pytest.approx(0.4)
        gateway.spending.settle(lone, 0.1)
        assert gateway.spending.allows(lone)
        assert gateway.spending.exhausted_for(Reservation("cloud", "m", 0.6))


def _spending_book(gateway: BudgetGateway) -> str:
    [book] = gateway.spending.books()
    return f"budget:{book.name}"
