"""Past requests of all gateways in the history of each of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from fakes.cluster_members import ClusterMember, members_running
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import running, until

from hostler.gateway.cluster.shared_history import SharedHistory
from hostler.gateway.cluster.shared_log import SharedLog
from hostler.gateway.events import Bus, Event, FinishedElsewhere, HopOutcome, RequestFinished
from hostler.gateway.telemetry.history import History, Sample

pytestmark = [pytest.mark.anyio, needs_redis]


class RememberingGateway(ClusterMember):
    """A gateway with a history. Another one with the same name and file is the same gateway again."""

    def __init__(self, url: str, name: str, file: Path | None = None, *, token: str | None = "secret") -> None:
        super().__init__(url, name, SharedLog.scripts, token=token)
        self.bus = Bus()
        self.news: list[str] = []
        self.history = History(file, sample=lambda: Sample(waiting=0, serving=0), gateway=name)
        self.shared = SharedHistory(
            self.store, self.signer, (name, name), self.history, self.bus, wall=time.time, every_s=0.01
        )
        self.bus.listen(self.history.on_event)
        self.bus.listen(self._on_event)

    def finish(self, number: int, **more: Any) -> None:
        self.bus.publish(request(self.name, number, **more))

    async def known(self) -> list[tuple[str | None, str]]:
        """The requests that its history has, the oldest first."""
        entries = await self.history.entries("requests", limit=1000)
        found = [msgspec.json.decode(each.event, type=RequestFinished) for each in reversed(entries)]
        return [(each.gateway, each.id) for each in found]

    async def until_known(self, count: int) -> list[tuple[str | None, str]]:
        with anyio.fail_after(20):
            while len(found := await self.known()) < count:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        return found

    def _on_event(self, event: Event) -> None:
        if isinstance(event, FinishedElsewhere):
            self.news.append(event.request.id)


def request(gateway: str, number: int, **more: Any) -> RequestFinished:
    fields = {"at": time.time(), "status": 200, "outcome": "ok", "backend": "pc", "model": "m", "seconds": 3.0, **more}
    return RequestFinished(
        id=f"{gateway}-{number}", protocol="openai", operation="chat", client="anna", gateway=gateway, **fields
    )


@asynccontextmanager
async def remembering(*gateways: RememberingGateway) -> AsyncIterator[None]:
    histories = [each.history.run for each in gateways]
    async with running(*histories), members_running(*gateways), running(*(each.shared.run for each in gateways)):
        yield


async def test_every_gateway_knows_the_past_requests_of_all(server: RedisServer, tmp_path: Path) -> None:
    one, two = (RememberingGateway(server.url, name, tmp_path / name) for name in "ab")
    async with remembering(one, two):
        one.finish(1)
        two.finish(1)
        assert sorted(await one.until_known(2)) == [("a", "a-1"), ("b", "b-1")]
        assert sorted(await two.until_known(2)) == [("a", "a-1"), ("b", "b-1")]
        assert (one.news, two.news) == (["b-1"], ["a-1"])
        [bucket] = await one.history.figures(seconds=600, buckets=1)
        assert bucket.requests == 2
        # A host of the other gateway may only have the same name.
        assert {model: len(times) for model, times in (await one.history.answer_times())["pc"].items()} == {"m": 1}


async def test_a_restart_repeats_and_omits_nothing(server: RedisServer, tmp_path: Path) -> None:
    one, two = (RememberingGateway(server.url, name, tmp_path / name) for name in "ab")
    async with remembering(one):
        async with remembering(two):
            one.finish(1)
            await two.until_known(1)
        one.finish(2)
        again = RememberingGateway(server.url, "b", tmp_path / "b")
        async with remembering(again):
            await again.until_known(2)
            one.finish(3)
            assert await again.until_known(3) == [("a", "a-1"), ("a", "a-2"), ("a", "a-3")]


async def test_without_the_store_each_gateway_has_its_own_and_later_all(server: RedisServer) -> None:
    one, two = (RememberingGateway(server.url, name) for name in "ab")
    async with remembering(one, two):
        server.kill()
        await until(lambda: not one.store.connected and not two.store.connected)
        one.finish(1)
        two.finish(1)
        assert await one.until_known(1) == [("a", "a-1")]
        server.start()
        assert sorted(await one.until_known(2)) == [("a", "a-1"), ("b", "b-1")]
        await two.until_known(2)


async def test_a_full_store_costs_nothing_but_the_requests_of_others(server: RedisServer) -> None:
    one = RememberingGateway(server.url, "a")
    async with remembering(one):
        server("CONFIG", "SET", "maxmemory", "1")
        for number in range(3):
            one.finish(number)
        await until(lambda: not one.store.connected)
        assert len(await one.until_known(3)) == 3
        server("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: one.store.connected)
        await until(lambda: server("XLEN", "hostler:home:history") == ":1")


async def test_many_requests_need_few_calls(server: RedisServer) -> None:
    one, two = (RememberingGateway(server.url, name) for name in "ab")
    async with remembering(one, two):
        server("CONFIG", "RESETSTAT")
        for number in range(1000):
            one.finish(number)
        await two.until_known(1000)
        assert server.count("evalsha") <= 40


BROKEN: dict[str, object] = {
    "another type": "x",
    "nested": msgspec.Raw(b"[" * 900 + b"]" * 900),
    "no fields": {},
    "later": {"at": 1e12},
    "negative": {"at": -1.0},
    "long ago": {"seconds": 1e300},
    "infinite tokens": {"completion_tokens": 10**40},
    "long": {"model": "x" * 5000},
    "long inside": {"failed_hops": [{"backend": "x" * 5000, "reason": "busy"}]},
}


@pytest.mark.parametrize("what", BROKEN)
async def test_requests_that_no_gateway_would_have_written_are_ignored(server: RedisServer, what: str) -> None:
    good = msgspec.to_builtins(request("a", 1))
    broken = BROKEN[what]
    entry = {**good, **broken} if isinstance(broken, dict) and broken else broken
    one, two = ClusterMember(server.url, "a", SharedLog.scripts), RememberingGateway(server.url, "b")
    log = SharedLog(
        one.store, one.signer, ("a", "a\n<b>"), "history", max_bytes=10**6, ttl_s=100, on_batch=lambda batch: None
    )
    async with members_running(one), running(log.run), remembering(two):
        log.add(msgspec.json.encode(entry))
        log.add(msgspec.json.encode({**good, "id": "good", "failed_hops": [HopOutcome(backend="x", reason="busy")]}))
        assert await two.until_known(1) == [("a?<b>", "good")]
