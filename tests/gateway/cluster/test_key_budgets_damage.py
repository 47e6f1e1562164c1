"""Budgets in a store that loses entries, or in which something else has written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.redis_server import RedisServer, needs_redis
from fakes.shared_gateways import admitted, budget_gateways, connected, day_book
from fakes.store_client import until
from redis import Redis

from hostler.gateway.cluster.ledger_step_script import STEP
from hostler.gateway.cluster.store import Script
from hostler.gateway.context import KeyRules

pytestmark = [pytest.mark.anyio, needs_redis]


@pytest.mark.parametrize("lost", ["FLUSHALL", "the entries"])
async def test_entries_that_vanish_while_the_store_is_used_are_brought_back(
    server: RedisServer, tmp_path: Path, lost: str
) -> None:
    rules = KeyRules(tokens_per_day=5000)
    async with budget_gateways(server.url, tmp_path) as gateways:
        first, second, third = gateways
        assert await first.use(rules, 4000)
        await until(lambda: second.known_tokens() == third.known_tokens() == 4000)
        server("FLUSHALL") if lost == "FLUSHALL" else server("DEL", "hostler:home:" + day_book(first))
        # One of each gateway at most, as without the store.
        assert 1 <= sum(await admitted([second, third], rules, 20)) <= 2
        await until(lambda: connected(gateways) and "4000," in server("HVALS", "hostler:home:" + day_book(first)))


@pytest.mark.parametrize(
    "entry",
    ["", "{", "7", "[1]", '[1,"a",0,0,0,0,[]]', "[1,0,0,0,0,0,[[1]]]", "[1,0,0,0,0,0,7]", "[1,-5,0,0,0,0,[]]", "[1,1e999,0,0,0,0,[]]"],
)  # fmt: skip
async def test_a_damaged_entry_is_removed_and_logged_and_the_store_stays_in_use(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, entry: str
) -> None:
    rules = KeyRules(tokens_per_day=5000)
    async with budget_gateways(server.url, tmp_path, 1) as [gateway]:
        assert await gateway.use(rules, 10)
        await until(lambda: "10," in server("HVALS", "hostler:home:" + day_book(gateway)))
        for field in ("stranger", "~stranger"):
            server("HSET", "hostler:home:" + day_book(gateway), field, entry)
        server("ZADD", "hostler:home:budgets:seen", "1", "~stranger")
        assert await gateway.use(rules, 10)
        await until(lambda: "stranger" not in server("HKEYS", "hostler:home:" + day_book(gateway)))
        assert "a damaged entry in the store" in caplog.text
        assert (gateway.ledger.connected, gateway.store.calls["failed"], gateway.known_tokens()) == (True, 0, 20)


async def test_a_damaged_entry_of_a_known_gateway_is_brought_back(server: RedisServer, tmp_path: Path) -> None:
    rules = KeyRules(tokens_per_day=5000)
    async with budget_gateways(server.url, tmp_path, 2) as (first, second):
        assert await first.use(rules, 5000)
        await until(lambda: second.known_tokens() == 5000)
        server("HSET", "hostler:home:" + day_book(first), "gateway0", "[]")
        assert await admitted([second], rules, 20) == [0]
        await until(
            lambda: connected([second]) and "5000," in server("HGET", "hostler:home:" + day_book(first), "gateway0")
        )


@pytest.mark.parametrize("key", ["budgets:seen", "budgets:index", "book"])
async def test_a_key_of_another_type_is_replaced(server: RedisServer, tmp_path: Path, key: str) -> None:
    rules = KeyRules(tokens_per_day=5000)
    async with budget_gateways(server.url, tmp_path, 2) as gateways:
        assert await gateways[0].use(rules, 4000)
        await until(lambda: gateways[1].known_tokens() == 4000)
        server("SET", "hostler:home:" + (day_book(gateways[0]) if key == "book" else key), "something else")
        assert 1 <= sum(await admitted(gateways, rules, 20)) <= 2
        await until(lambda: connected(gateways))
        assert all(each.store.calls["failed"] == 0 for each in gateways)
        assert "4000," in server("HVALS", "hostler:home:" + day_book(gateways[0]))


async def test_a_damaged_entry_does_not_keep_a_gateway_from_the_store(server: RedisServer, tmp_path: Path) -> None:
    rules = KeyRules(tokens_per_day=5000)
    async with budget_gateways(server.url, tmp_path, 1) as [gateway]:
        assert await gateway.use(rules, 4000)
        await until(lambda: "4000," in server("HVALS", "hostler:home:" + day_book(gateway)))
        server("HSET", "hostler:home:" + day_book(gateway), "gateway0", "[]", "stranger", "{")
        server("SET", "hostler:home:budgets:index", "something else")
        server("CLIENT", "KILL", "TYPE", "normal")
        await until(
            lambda: gateway.ledger.connected and "4000," in server("HVALS", "hostler:home:" + day_book(gateway))
        )
        assert sum(await admitted([gateway], rules, 20)) == 1


STRANGER = b"\xff\xfe"


@pytest.mark.parametrize("place", ["seen", "parts", "a book", "messages"])
async def test_what_no_gateway_is_called_harms_none(server: RedisServer, tmp_path: Path, place: str) -> None:
    rules = KeyRules(tokens_per_day=5000)
    async with budget_gateways(server.url, tmp_path, 2) as gateways:
        first, second = gateways
        assert await first.use(rules, 10)
        book = day_book(first)
        with Redis(port=server.port) as stranger:
            if place == "seen":
                stranger.zadd("hostler:home:budgets:seen", {STRANGER: time.time()})
            elif place == "parts":
                stranger.hset("hostler:home:budgets:parts", STRANGER, "0.5")
            elif place == "a book":
                stranger.hset("hostler:home:" + book, STRANGER, "[1,5,0,0,0,0,[]]")
            else:
                words = [
                    STRANGER,
                    b"[1,5,0,0,0,0,[]]",
                    b"[0,0]",
                    b"[5000,-1,false]",
                    book.removeprefix("budget:").encode(),
                ]
                stranger.publish("hostler:home:budgets", b" ".join(words))
        first.store._fail("closed by the test")
        await until(lambda: connected(gateways))
        for number in range(3):
            assert await second.use(rules, 10)
            await until(lambda number=number: first.known_tokens() == 20 + 10 * number)
        assert await first.use(rules, 10)
        assert connected(gateways)
        assert second.store.calls["away"] + second.store.calls["failed"] == 0


async def test_a_gateway_of_the_future_is_gone_like_any_other(server: RedisServer, tmp_path: Path) -> None:
    rules = KeyRules(tokens_per_day=5000)
    async with budget_gateways(server.url, tmp_path, 1) as [gateway]:
        server("ZADD", "hostler:home:budgets:seen", "9999999999", "stranger")
        assert await gateway.use(rules, 10)
        assert float(server("ZSCORE", "hostler:home:budgets:seen", "stranger").splitlines()[1]) < time.time() + 1


@pytest.mark.parametrize("requests", [True, False])
async def test_an_answer_that_no_script_gives_ends_no_gateway(
    server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    requests: bool,
) -> None:
    rules = KeyRules(tokens_per_day=5000)
    async with budget_gateways(server.url, tmp_path, 1) as [gateway]:
        run_script, broken = gateway.store.run_script, False

        async def answer(script: Script, keys: Sequence[str], *values: Any, limit_s: float) -> Any:
            nonlocal broken
            found = await run_script(script, keys, *values, limit_s=limit_s)
            if script is not STEP or broken or requests == (b'"wants":[]' in values[0]):
                return found
            broken = True
            return [b"odd", b"answer", b""]

        monkeypatch.setattr(gateway.store, "run_script", answer)
        with anyio.fail_after(10):
            while not broken:
                assert await gateway.use(rules, 1)
                await anyio.sleep(0.01)
        await until(lambda: gateway.ledger.connected)
        assert await gateway.use(rules, 1)
    assert "unhandled exception in a step of the budgets" in caplog.text
