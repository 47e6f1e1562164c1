"""Limits of keys that hold for several gateways together, whatever happens to the store."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from fakes.redis_server import RedisServer, needs_redis
from fakes.shared_gateways import (
    BudgetGateway,
    admitted,
    budget_gateways,
    connected,
    day_book,
    have_equal_parts,
    shares,
)
from fakes.store_client import running, until
from fakes.tcp_proxy import proxy_to

from hostler.gateway.context import KeyRules

pytestmark = [pytest.mark.anyio, needs_redis]


@pytest.mark.parametrize(
    ("rules", "dollars", "most"),
    [
        (KeyRules(requests_per_minute=25), 0.0, 25),
        (KeyRules(tokens_per_minute=24_500), 0.0, 25),
        (KeyRules(tokens_per_day=24_500), 0.0, 25),
        (KeyRules(dollars_per_day=0.5), 0.02, 25),
    ],
)
async def test_many_at_once_at_all_gateways_stay_within_one_limit(
    server: RedisServer, tmp_path: Path, rules: KeyRules, dollars: float, most: int
) -> None:
    async with budget_gateways(server.url, tmp_path) as gateways:
        assert sum(await admitted(gateways, rules, 60, dollars=dollars)) == most
        assert connected(gateways)


async def test_one_gateway_alone_may_use_all_of_a_limit(server: RedisServer, tmp_path: Path) -> None:
    async with budget_gateways(server.url, tmp_path) as gateways:
        rules = KeyRules(requests_per_minute=30)
        assert await admitted(gateways[:1], rules, 60) == [30]
        assert await admitted(gateways[1:], rules, 2) == [0, 0]


async def test_what_one_gateway_has_used_counts_at_the_others_at_once(server: RedisServer, tmp_path: Path) -> None:
    async with budget_gateways(server.url, tmp_path) as (first, second, third):
        rules = KeyRules(tokens_per_day=5000)
        assert await first.use(rules, 4000)
        assert await second.use(rules, 2000)
        await until(lambda: third.known_tokens() == 6000)
        assert await third.admit(rules) is None
        assert [each.known_tokens() for each in (first, second, third)] == [6000] * 3
        [limit] = third.keys.limits("bob", rules)
        assert (limit.limit, limit.remaining) == (5000, 0)


async def test_what_is_reserved_at_one_gateway_counts_at_the_others_until_it_is_settled(
    server: RedisServer, tmp_path: Path
) -> None:
    async with budget_gateways(server.url, tmp_path) as (first, second, _):
        rules = KeyRules(tokens_per_day=1000)
        reservation = await first.admit(rules)
        assert reservation is not None
        assert await second.admit(rules) is None
        first.settle(reservation, 10)
        await until(lambda: second.known_tokens() == 10)
        assert await second.admit(rules) is not None


async def test_a_request_makes_two_calls_to_the_store_at_most(server: RedisServer, tmp_path: Path) -> None:
    async with budget_gateways(server.url, tmp_path, 1) as [gateway]:
        rules = KeyRules(requests_per_minute=1000, tokens_per_day=10**6, dollars_per_day=100)
        server("CONFIG", "RESETSTAT")
        for number in range(1, 101):
            assert await gateway.use(rules, 10, dollars=0.01)
            await until(lambda number=number: f"{10 * number}," in server("HVALS", "hostler:home:" + day_book(gateway)))
        # Beside them it reports each second that it is there.
        assert server.count("evalsha") <= 200 + 60
        assert gateway.store.calls["failed"] == 0


@pytest.mark.parametrize("fault", ["kill", "suspend"])
async def test_without_the_store_each_gateway_uses_its_share_of_what_was_left(
    server: RedisServer, tmp_path: Path, fault: str
) -> None:
    rules = KeyRules(requests_per_minute=40)
    async with budget_gateways(server.url, tmp_path) as gateways:
        assert sum(await admitted(gateways[:1], rules, 10)) == 10
        await until(lambda: shares(gateways, rules) == [(0, 0, 10, 0)] * 3)
        server.kill() if fault == "kill" else server.suspend()
        counts = await admitted(gateways, rules, 90)
        assert counts == [10, 10, 10]
        assert sum(await admitted(gateways, rules, 9)) == 0
        server.start() if fault == "kill" else server.resume()
        await until(lambda: connected(gateways))
        # An empty store gives no new budget.
        assert sum(await admitted(gateways, rules, 9)) == 0


@pytest.mark.parametrize("limit", [1, 10, 50])
async def test_without_the_store_a_limit_is_exceeded_by_one_request_of_each_gateway_at_most(
    server: RedisServer, tmp_path: Path, limit: int
) -> None:
    rules = KeyRules(requests_per_minute=limit)
    async with budget_gateways(server.url, tmp_path) as gateways:
        server.kill()
        counts = await admitted(gateways, rules, 90)
        assert min(counts) >= 1
        assert limit <= sum(counts) <= limit + 3


async def test_the_store_that_is_killed_and_started_again_under_load_changes_no_figures(
    server: RedisServer, tmp_path: Path
) -> None:
    rules = KeyRules(tokens_per_day=10**9)
    async with budget_gateways(server.url, tmp_path) as gateways:
        used = 0
        for round_ in range(12):
            for gateway in gateways:
                used += 7 * await gateway.use(rules, 7)
            if round_ % 4 == 1:
                server.kill()
            if round_ % 4 == 3:
                server.start()
                await until(lambda: connected(gateways))
        assert used == 12 * 3 * 7
        await until(lambda: [each.known_tokens() for each in gateways] == [used] * 3)


async def test_a_gateway_that_returns_later_than_others_keeps_its_share(server: RedisServer, tmp_path: Path) -> None:
    rules = KeyRules(tokens_per_day=30_000)
    late = BudgetGateway(server.url, tmp_path, "late")
    async with budget_gateways(server.url, tmp_path, 2) as (first, second):
        with anyio.CancelScope() as connection:
            async with late.running():
                await until(lambda: have_equal_parts([first, second, late]))
                for _ in range(3):
                    assert await first.use(rules, 1000)
                await until(lambda: shares([first, second, late], rules) == [(9000, 0, 0, 0)] * 3)
                server.kill()
                await until(lambda: not any(each.ledger.connected for each in (first, second, late)))
                await late.killed(connection)
        server.start()
        await until(lambda: connected([first, second]))
        # 9,000 of the 27,000 that were left stay with the third one, which may be using them at this moment.
        counts = await admitted([first, second], rules, 40)
        assert sum(counts) == 18
        # Once it is back, without having used them, they are for all.
        async with BudgetGateway(server.url, tmp_path, "late").running():
            await until(lambda: server("ZCARD", "hostler:home:budgets:seen") == ":3")

            async def admits() -> bool:
                return await second.admit(rules) is not None

            with anyio.fail_after(10):
                while not await admits():  # noqa: ASYNC110
                    await anyio.sleep(0.01)


async def test_what_a_gateway_has_reserved_when_it_crashes_counts_as_used(server: RedisServer, tmp_path: Path) -> None:
    rules = KeyRules(tokens_per_day=10_000)
    async with budget_gateways(server.url, tmp_path, 1) as [first]:
        crashed = BudgetGateway(server.url, tmp_path, "crashed")
        with anyio.CancelScope() as process:
            async with crashed.running():
                await until(lambda: crashed.ledger.connected)
                assert await crashed.admit(rules) is not None
                await crashed.killed(process)
        await until(lambda: first.keys._total("bob", rules).reserved_tokens == 1000)
        again = BudgetGateway(server.url, tmp_path, "crashed")
        async with again.running():
            await until(lambda: again.ledger.connected and first.known_tokens() == again.known_tokens() == 1000)
            assert first.keys._total("bob", rules).reserved_tokens == 0


async def test_a_gateway_that_lost_its_files_adopts_what_it_had_reported(server: RedisServer, tmp_path: Path) -> None:
    rules = KeyRules(tokens_per_day=5000, dollars_per_day=1)
    async with budget_gateways(server.url, tmp_path, 1, limit=10.0) as [first]:
        assert await first.use(rules, 4000, dollars=0.5)
        await until(lambda: "4000" in server("HVALS", "hostler:home:" + day_book(first)))
    again = BudgetGateway(server.url, tmp_path / "empty", "gateway0", limit=10.0)
    async with again.running():
        await until(lambda: again.ledger.connected)
        assert (again.known_tokens(), again.keys.figures()["bob"].dollars) == (4000, 0.5)


@pytest.mark.parametrize("folder", ["", "empty"])
async def test_what_was_in_progress_at_a_crash_counts_in_the_minute(
    server: RedisServer, tmp_path: Path, folder: str
) -> None:
    rules = KeyRules(tokens_per_minute=1000)
    first = BudgetGateway(server.url, tmp_path, "gateway0")
    with anyio.CancelScope() as process:
        async with first.running():
            await until(lambda: first.ledger.connected)
            assert await first.admit(rules) is not None
            await first.killed(process)
    again = BudgetGateway(server.url, tmp_path / folder, "gateway0")
    async with again.running():
        await until(lambda: again.ledger.connected)
        assert await again.admit(rules) is None


async def test_connections_leave_no_scripts_behind_in_the_store(server: RedisServer, tmp_path: Path) -> None:
    def scripts() -> str:
        return next(
            line for line in server("INFO", "memory").splitlines() if line.startswith("number_of_cached_scripts:")
        )

    async with budget_gateways(server.url, tmp_path, 1) as [gateway]:
        before = scripts()
        for _ in range(3):
            gateway.store._fail("closed by the test")
            await until(lambda: gateway.ledger.connected)
        server("FLUSHALL")
        await until(lambda: server("EXISTS", "hostler:home:budgets:life") == ":1" and gateway.ledger.connected)
        assert scripts() == before


async def test_a_gateway_that_starts_without_the_store_remembers_the_others(
    server: RedisServer, tmp_path: Path
) -> None:
    rules = KeyRules(tokens_per_day=4000)
    async with budget_gateways(server.url, tmp_path) as gateways:
        for each in gateways:
            assert await each.use(rules, 1000)
        await until(lambda: [each.known_tokens() for each in gateways] == [3000] * 3)
        server.kill()
        await until(lambda: not any(each.ledger.connected for each in gateways))
    again = BudgetGateway(server.url, tmp_path, "gateway1")
    assert (again.known_tokens(), again.ledger.gateways) == (3000, 3)
    assert again.keys.limits("bob", rules)[0].remaining == 1000 - 666


async def test_gateways_with_other_clocks_count_the_same_minute(server: RedisServer, tmp_path: Path) -> None:
    rules = KeyRules(requests_per_minute=10)
    ahead = BudgetGateway(server.url, tmp_path, "ahead", skew_s=3 * 24 * 3600)
    async with budget_gateways(server.url, tmp_path, 1) as [first], ahead.running():
        await until(lambda: ahead.ledger.connected)
        assert abs(ahead.ledger.wall() - first.ledger.wall()) < 1
        assert await admitted([ahead], rules, 7) == [7]
        assert await admitted([first], rules, 7) == [3]


async def test_a_client_that_leaves_while_it_waits_reserves_nothing(server: RedisServer, tmp_path: Path) -> None:
    rules = KeyRules(tokens_per_day=1000)
    async with budget_gateways(server.url, tmp_path, 2) as (first, second):
        with anyio.CancelScope() as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first.admit, rules)
                await anyio.lowlevel.checkpoint()
                client.cancel()

        async def admits() -> bool:
            return await second.admit(rules) is not None

        with anyio.fail_after(10):
            while not await admits():  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_every_budget_in_the_store_expires(server: RedisServer, tmp_path: Path) -> None:
    async with budget_gateways(server.url, tmp_path, 1, limit=1.0) as [gateway]:
        assert await gateway.use(KeyRules(requests_per_minute=5), 10)
        await until(lambda: server("ZCARD", "hostler:home:budgets:index") == ":3")
        for name in server("KEYS", "*").splitlines():
            if name.startswith("hostler:"):
                assert int(server("PTTL", name).removeprefix(":")) > 0, name


async def test_the_share_of_a_gateway_that_returns_to_the_store_later_is_kept_for_it(
    server: RedisServer, tmp_path: Path
) -> None:
    rules = KeyRules(requests_per_minute=30)
    async with proxy_to(server.url) as link:
        first = BudgetGateway(server.url, tmp_path, "first")
        second = BudgetGateway(f"redis://127.0.0.1:{link.port}", tmp_path, "second")
        async with first.running(), second.running():
            await until(lambda: connected([first, second]) and first.ledger.gateways == second.ledger.gateways == 2)
            assert await admitted([first], rules, 2) == [2]
            await until(lambda: shares([first, second], rules) == [(0, 0, 14, 0)] * 2)
            server.suspend()
            await until(lambda: not first.ledger.connected and not second.ledger.connected)
            link.hold()
            server.resume()
            await until(lambda: first.ledger.connected)
            assert await admitted([first], rules, 40) == [14]
            assert await admitted([second], rules, 40) == [14]
            link.restore()
            await until(lambda: connected([first, second]))
            assert sum(await admitted([first, second], rules, 10)) == 0


@pytest.mark.parametrize("passes", range(4))
async def test_a_report_does_not_replace_what_is_being_reserved(
    server: RedisServer, tmp_path: Path, passes: int
) -> None:
    rules = KeyRules(tokens_per_day=10**6)
    async with budget_gateways(server.url, tmp_path, 1) as [gateway]:
        first, second = await gateway.admit(rules), await gateway.admit(rules)
        assert first is not None
        assert second is not None
        held = []

        async def ask() -> None:
            held.append(await gateway.admit(rules))

        async def settle() -> None:
            for _ in range(passes):
                await anyio.lowlevel.checkpoint()
            gateway.settle(second)

        gateway.settle(first)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(settle)
        assert held[0] is not None
        await until(lambda: not gateway.ledger._steps.changed)
        reports = server.count("evalsha")
        await until(lambda: server.count("evalsha") > reports)
        entry = json.loads(server("HGET", "hostler:home:" + day_book(gateway), "gateway0").splitlines()[1])
        assert entry[3] == held[0].tokens


async def test_no_request_waits_for_a_gateway_that_has_ended(server: RedisServer, tmp_path: Path) -> None:
    rules = KeyRules(requests_per_minute=10)
    gateway = BudgetGateway(server.url, tmp_path, "gateway0")
    async with running(gateway.store.run):
        async with running(gateway.ledger.run):
            await until(lambda: gateway.ledger.connected)
            assert await gateway.admit(rules) is not None
        assert gateway.store.connected
        with anyio.fail_after(5):
            assert await gateway.admit(rules) is None
