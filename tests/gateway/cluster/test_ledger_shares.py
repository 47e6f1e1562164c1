"""What gateways may use without the store is kept for them, and nothing else is: limits hold whatever fails, and when."""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from fakes.flaky_store import FlakyStore
from fakes.redis_server import RedisServer, needs_redis
from fakes.shared_gateways import BudgetGateway, admitted, budget_gateways, connected, have_equal_parts, shares
from fakes.store_client import running, until

from hostler.gateway.backends.cost import Reservation
from hostler.gateway.cluster.budget_books import Book, Entry
from hostler.gateway.cluster.ledger_scripts import RESTORE
from hostler.gateway.cluster.ledger_shares import Shares
from hostler.gateway.cluster.store import Script
from hostler.gateway.context import KeyRules

pytestmark = [pytest.mark.anyio, needs_redis]

RULES = KeyRules(requests_per_minute=30)
BOOK = Book(name="day:1:bob", limits=(90.0, -1.0))


class CutOff:
    """Gateways with a common store, from which each can be cut off."""

    def __init__(
        self,
        server: RedisServer,
        folder: Path,
        count: int,
        chance: random.Random,
        *,
        losses: float = 0.0,
        limit: float | None = 5.0,
    ) -> None:
        self._server, self._folder, self._chance = server, folder, chance
        self._losses, self._limit = losses, limit
        self.gateways = [self._gateway(number) for number in range(count)]
        self._scopes: dict[int, anyio.CancelScope] = {}
        self._ended: dict[int, anyio.Event] = {}
        self._requests: dict[int, list[tuple[anyio.CancelScope, anyio.Event]]] = {number: [] for number in range(count)}

    def _gateway(self, number: int) -> BudgetGateway:
        store = FlakyStore(self._server.url, self._chance, losses=self._losses)
        return BudgetGateway(self._server.url, self._folder, f"gateway{number}", limit=self._limit, store=store)

    def cut(self, number: int, *, off: bool = True) -> None:
        """Let one gateway lose the store, or have it again."""
        store = self.gateways[number].store
        assert isinstance(store, FlakyStore)
        store.is_cut = off

    async def run(self, number: int) -> None:
        """Run a gateway until it is killed."""
        ended = self._ended[number] = anyio.Event()
        with anyio.CancelScope() as self._scopes[number]:
            async with self.gateways[number].running():
                await anyio.sleep_forever()
        ended.set()

    async def reserve(self, number: int, wanted: Reservation) -> bool:
        """Reserve money at a gateway. The request ends with it."""
        request = anyio.CancelScope(), anyio.Event()
        self._requests[number].append(request)
        try:
            with request[0]:
                return await self.gateways[number].spending.try_reserve(wanted)
            return False
        finally:
            self._requests[number].remove(request)
            request[1].set()

    async def crash(self, number: int) -> None:
        """End a gateway without another word, and its requests. Another process may go on with its files."""
        for scope, ended in list(self._requests[number]):
            scope.cancel()
            await ended.wait()
        await self.gateways[number].killed(self._scopes[number])
        await self._ended[number].wait()
        self.gateways[number] = self._gateway(number)


@asynccontextmanager
async def cut_off(
    server: RedisServer, folder: Path, count: int = 3, *, seed: int = 1, losses: float = 0.0, limit: float | None = 5.0
) -> AsyncIterator[CutOff]:
    world = CutOff(server, folder, count, random.Random(seed), losses=losses, limit=limit)
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(world.run, number)
        await until(lambda: connected(world.gateways) and have_equal_parts(world.gateways))
        yield world
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("lost", [1, 2])
async def test_those_that_keep_the_store_leave_the_shares_of_those_that_lose_it(
    server: RedisServer, tmp_path: Path, lost: int
) -> None:
    async with cut_off(server, tmp_path) as world:
        assert sum(await admitted(world.gateways[:1], RULES, 3)) == 3
        await until(lambda: shares(world.gateways, RULES) == [(0, 0, 9, 0)] * 3)
        for number in range(lost):
            world.cut(number)
        # At once, before any silence can be noticed.
        with_store = await admitted(world.gateways[lost:], RULES, 40)
        without = await admitted(world.gateways[:lost], RULES, 40)
        assert (sum(with_store), without) == (27 - 9 * lost, [9] * lost)
        for number in range(lost):
            world.cut(number, off=False)
        await until(lambda: connected(world.gateways))
        assert sum(await admitted(world.gateways, RULES, 9)) == 0


async def test_what_one_gateway_has_given_up_is_not_used_there(server: RedisServer, tmp_path: Path) -> None:
    async with cut_off(server, tmp_path, 2) as world:
        assert await admitted(world.gateways[:1], RULES, 30) == [30]
        world.cut(1)
        assert await admitted(world.gateways[1:], RULES, 5) == [0]


async def test_a_report_from_before_a_gateway_was_asked_is_no_answer(server: RedisServer, tmp_path: Path) -> None:
    async with budget_gateways(server.url, tmp_path, 2) as [first, second], anyio.create_task_group() as tasks:
        assert sum(await admitted([first], RULES, 3)) == 3
        [(channel, give_up)] = [each for each in second.store._channels.items() if b"asking" in each[0]]

        async def report_and_give_up(message: bytes) -> None:
            second.ledger.changed(second.keys._books("bob", RULES), soon=False)
            await second.ledger._steps.make((), 0.5)
            give_up(message)

        second.store._channels[channel] = lambda message: tasks.start_soon(report_and_give_up, message)
        assert await admitted([first], RULES, 27) == [27]


async def test_a_process_that_is_started_again_does_not_use_what_it_has_given_up(
    server: RedisServer, tmp_path: Path
) -> None:
    async with cut_off(server, tmp_path, 2) as world:
        assert await admitted(world.gateways[:1], RULES, 29) == [29]
        await world.crash(1)
        assert sum(await admitted(world.gateways, RULES, 5)) <= 1


@pytest.mark.parametrize("loss", ["emptied", "killed"])
async def test_a_process_that_is_started_again_before_any_request_knows_the_others(
    server: RedisServer, tmp_path: Path, loss: str
) -> None:
    async with cut_off(server, tmp_path, limit=None) as world:
        await world.crash(2)
        world.cut(0)
        world.cut(1)
        if loss == "emptied":
            server("FLUSHALL")
        else:
            server.kill()
            server.start()
        async with running(lambda: world.run(2)):
            ledger = world.gateways[2].ledger
            await until(lambda: ledger.connected)
            await ledger._steps.make((), 0.5)
            await ledger._steps.raise_part()
            assert await admitted(world.gateways, RULES, 90) == [10, 10, 10]


async def test_what_is_known_of_others_is_written_again_without_any_request(
    server: RedisServer, tmp_path: Path
) -> None:
    def written_at() -> float:
        return float(json.loads((tmp_path / "gateway0-ledger.json").read_text())["value"]["written"])

    async with budget_gateways(server.url, tmp_path, 2) as [first, _]:
        before = written_at()
        first.ledger._refreshed_at -= 60
        await until(lambda: written_at() > before)


async def test_a_process_that_is_started_again_reports_its_shares_with_its_figures(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    async with cut_off(server, tmp_path, 2) as world:
        assert await admitted(world.gateways[:1], RULES, 3) == [3]
        await world.crash(0)
        store = world.gateways[0].store
        run_script = store.run_script

        async def noted(script: Script, keys: Sequence[str], *values: Any, limit_s: float) -> Any:
            if script is RESTORE:
                asked.extend(msgspec.json.decode(values[0])["books"])
            return await run_script(script, keys, *values, limit_s=limit_s)

        monkeypatch.setattr(store, "run_script", noted)
        async with running(lambda: world.run(0)):
            await until(lambda: world.gateways[0].ledger.connected)
    assert {(each["share"] is None, "gateway0" in each["entries"]) for each in asked} == {(True, False), (False, True)}


@pytest.mark.parametrize(("pause_s", "most"), [(100.0, 15), (400.0, 0)])
async def test_a_gateway_that_was_frozen_for_long_uses_nothing_before_it_has_asked(
    server: RedisServer, tmp_path: Path, pause_s: float, most: int
) -> None:
    passed = 0.0
    frozen = BudgetGateway(server.url, tmp_path, "frozen", clock=lambda: time.monotonic() + passed)
    async with budget_gateways(server.url, tmp_path, 1) as [other], frozen.running():
        await until(lambda: have_equal_parts([other, frozen]))
        assert sum(await admitted([other], RULES, 1)) == 1
        server.kill()
        await until(lambda: not frozen.ledger.connected)
        passed = pause_s
        assert 0 <= (await admitted([frozen], RULES, 40))[0] <= most
        server.start()
        await until(lambda: connected([other, frozen]))
        await until(lambda: have_equal_parts([other, frozen]))


async def test_a_gateway_that_joins_has_no_share_of_what_others_hold(server: RedisServer, tmp_path: Path) -> None:
    async with budget_gateways(server.url, tmp_path, 1) as [first]:
        assert sum(await admitted([first], RULES, 20)) == 20
        async with BudgetGateway(server.url, tmp_path, "second").running() as _, cut_off_at_once(server) as counts:
            await until(lambda: first.ledger.gateways == 2)
            server.kill()
            await until(lambda: not first.ledger.connected)
            counts += await admitted([first], RULES, 40)
            assert sum(counts) <= 10


@asynccontextmanager
async def cut_off_at_once(server: RedisServer) -> AsyncIterator[list[int]]:
    """Counts of requests, and a store that is there again at the end."""
    counts: list[int] = []
    yield counts
    server.start()


async def test_a_limit_that_is_lowered_holds_at_once(server: RedisServer, tmp_path: Path) -> None:
    async with cut_off(server, tmp_path) as world:
        assert sum(await admitted(world.gateways, RULES, 6)) == 6
        lower = KeyRules(requests_per_minute=10)
        assert sum(await admitted(world.gateways, lower, 30)) == 4
        assert sum(await admitted(world.gateways[:1], RULES, 40)) == 20


@pytest.mark.parametrize("seed", range(5))
async def test_limits_hold_while_everything_fails(server: RedisServer, tmp_path: Path, seed: int) -> None:
    """Each gateway without the store may exceed a limit by one request, and none of those that have it."""
    chance = random.Random(seed)
    async with cut_off(server, tmp_path, seed=seed, losses=0.04) as world, anyio.create_task_group() as tasks:
        used: dict[str, int] = {}
        spent = Spent()
        for number in range(3):
            tasks.start_soon(spend, world, number, spent, random.Random(seed * 10 + number))
        for round_ in range(5):
            key, rules = f"key{round_}", KeyRules(requests_per_minute=chance.choice((7, 20, 33)))

            async def ask(number: int, key: str = key, rules: KeyRules = rules) -> None:
                if await world.gateways[number].admit(rules, key=key) is not None:
                    used[key] = used.get(key, 0) + 1

            for _ in range(20):
                await disturb(world, server, tasks, chance)
                async with anyio.create_task_group() as requests:
                    for _ in range(chance.randrange(12)):
                        requests.start_soon(ask, chance.randrange(3))
                assert used.get(key, 0) <= (rules.requests_per_minute or 0) + 3, (key, rules)
                await anyio.sleep(chance.choice((0.0, 0.0, 0.02)))
        tasks.cancel_scope.cancel()
    assert spent.most <= 5.0 + 3 * spent.largest


class Spent:
    """What requests have cost, and may cost that are in progress."""

    def __init__(self) -> None:
        self.dollars = self.most = 0.0
        self.largest = 0.5

    def add(self, dollars: float) -> None:
        self.dollars += dollars
        self.most = max(self.most, self.dollars)


async def spend(world: CutOff, number: int, spent: Spent, chance: random.Random) -> None:
    """Requests one after the other, each of which costs half of what it may."""
    while True:
        gateway = world.gateways[number]
        wanted = Reservation("cloud", "m", chance.choice((0.02, 0.1, spent.largest)))
        if await world.reserve(number, wanted):
            spent.add(wanted.amount)
            await anyio.sleep(chance.uniform(0.0, 0.02))
            if gateway is world.gateways[number]:  # else it has died, and all of it counts
                gateway.spending.settle(wanted, wanted.amount / 2)
                spent.add(-wanted.amount / 2)
        await anyio.sleep(0.005)


async def disturb(world: CutOff, server: RedisServer, tasks: anyio.abc.TaskGroup, chance: random.Random) -> None:
    """Perhaps do some harm."""
    number = chance.randrange(3)
    match chance.randrange(14):
        case 0 | 1:
            world.cut(number)
        case 2 | 3 | 4:
            world.cut(number, off=False)
        case 5:
            server("FLUSHALL")
        case 6:
            server.kill()
            server.start()
        case 7:
            await world.crash(number)
            tasks.start_soon(world.run, number)


# The shares by themselves


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Shares]:
    found = Shares(tmp_path / "shares.json", time.time)
    found.clear()
    found.part = 1 / 3
    yield found


async def test_a_share_counts_from_the_figures_that_were_written_with_it(kept: Shares) -> None:
    assert kept.room(BOOK, Entry(), 0.0) == (30.0, 0.0)
    kept.hold(BOOK.name, Entry(used_a=10.0), (20.0, 0.0))
    assert kept.room(BOOK, Entry(used_a=12.0, reserved_a=5.0), 0.0) == (13.0, 0.0)
    assert kept.room(BOOK, Entry(used_a=40.0), 0.0) == (0.0, 0.0)


@pytest.mark.parametrize("meanwhile", ["nothing", "lowered", "paused", "offered again"])
async def test_a_larger_share_is_accepted_unless_something_has_come_between(kept: Shares, meanwhile: str) -> None:
    offered = Entry(sequence=5, used_a=10.0)
    kept.offer(BOOK.name, offered, (2.0, 0.0))
    if meanwhile == "lowered":
        kept.hold(BOOK.name, offered, (1.0, 0.0))
    elif meanwhile == "paused":
        kept.clear()
    elif meanwhile == "offered again":
        kept.offer(BOOK.name, Entry(sequence=6, used_a=10.0), (1.0, 0.0))
    kept.accept(BOOK.name, offered, (20.0, 0.0))
    expected = {"nothing": 20.0, "lowered": 1.0, "paused": 0.0, "offered again": 1.0}
    assert kept.room(BOOK, Entry(used_a=10.0), 0.0)[0] == expected[meanwhile]


async def test_a_part_that_became_smaller_makes_all_shares_smaller(kept: Shares) -> None:
    kept.hold(BOOK.name, Entry(), (30.0, 0.0))
    kept.part = 0.1
    assert kept.room(BOOK, Entry(), 0.0) == (9.0, 0.0)


async def test_the_file_never_has_more_than_is_held(kept: Shares, tmp_path: Path) -> None:
    kept.keep()
    for share in (29.0, 12.0, 3.0, 0.0):
        kept.hold(BOOK.name, Entry(used_a=1.0), (share, 0.0))
        kept.keep_lowered([BOOK.name], {BOOK.name: BOOK}, 0.0)
        again = Shares(tmp_path / "shares.json", time.time)
        assert again.is_kept
        assert again.room(BOOK, Entry(used_a=1.0), 0.0)[0] <= share


async def test_a_file_of_long_ago_says_nothing(kept: Shares, tmp_path: Path) -> None:
    kept.keep()
    assert not Shares(tmp_path / "shares.json", lambda: time.time() + 601).is_kept
    assert not Shares(tmp_path / "shares.json", lambda: time.time() - 601).is_kept


async def test_while_the_part_is_raised_only_shares_that_are_known_are_used(kept: Shares) -> None:
    kept.is_raising = True
    assert kept.room(BOOK, Entry(), 0.0) == (0.0, 0.0)
    kept.hold(BOOK.name, Entry(), (2.0, 0.0))
    assert kept.room(BOOK, Entry(), 0.0) == (2.0, 0.0)


async def test_gateways_that_the_store_has_never_known_take_equal_parts(tmp_path: Path) -> None:
    fresh = Shares(tmp_path / "shares.json", time.time)
    fresh.take(BOOK, Entry(used_a=10.0), (80.0, 0.0), 4)
    assert fresh.room(BOOK, Entry(used_a=10.0), 0.0) == (20.0, 0.0)
    fresh.take(BOOK, Entry(used_a=30.0), (60.0, 0.0), 4)
    assert fresh.room(BOOK, Entry(used_a=30.0), 0.0) == (0.0, 0.0)
