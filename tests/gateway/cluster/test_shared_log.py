"""A log in the store that all gateways write and follow."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from fakes.cluster_members import ClusterMember, members_running
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import running, until

from hostler.gateway.cluster.shared_log import LogBatch, SharedLog

pytestmark = [pytest.mark.anyio, needs_redis]

LOG = "hostler:home:notes"


class Writer(ClusterMember):
    """A gateway that writes numbers, and keeps those of others."""

    def __init__(
        self, url: str, name: str, *, token: str | None = "secret", max_bytes: int = 100_000, position: bytes = b""
    ) -> None:
        super().__init__(url, name, SharedLog.scripts, token=token)
        self.found: list[tuple[str, int]] = []
        self.log = SharedLog(
            self.store,
            self.signer,
            (name, f"gateway {name}"),
            "notes",
            max_bytes=max_bytes,
            ttl_s=100,
            on_batch=self._on_batch,
            every_s=0.01,
        )
        self.log.go_on_at(position)

    def write(self, *numbers: int) -> None:
        for number in numbers:
            self.log.add(msgspec.json.encode(number))

    def _on_batch(self, batch: LogBatch) -> None:
        self.found += [(batch.name, msgspec.json.decode(each)) for each in batch.entries]


@asynccontextmanager
async def writing(*writers: Writer) -> AsyncIterator[None]:
    async with members_running(*writers), running(*(each.log.run for each in writers)):
        yield


def said(name: str, *numbers: int) -> list[tuple[str, int]]:
    return [(f"gateway {name}", number) for number in numbers]


async def test_every_gateway_reads_what_the_others_write(server: RedisServer) -> None:
    one, two, three = (Writer(server.url, name) for name in ("a", "b", "c"))
    async with writing(one, two, three):
        one.write(1, 2)
        two.write(3)
        await until(lambda: len(one.found) == 1 and len(two.found) == 2 and len(three.found) == 3)
    assert (one.found, two.found) == (said("b", 3), said("a", 1, 2))
    assert sorted(three.found) == [*said("a", 1, 2), *said("b", 3)]


async def test_a_gateway_that_comes_later_reads_the_rest_and_what_it_has_read_never_again(server: RedisServer) -> None:
    one, two = Writer(server.url, "a"), Writer(server.url, "b")
    one.write(*range(250))
    async with writing(one), writing(two):
        await until(lambda: len(two.found) == 250)
        one.write(250)
        await until(lambda: len(two.found) == 251)
    assert two.found == said("a", *range(251))
    again = Writer(server.url, "b", position=two.log.position)
    async with writing(one), writing(again):
        one.write(7)
        await until(lambda: again.found)
    assert again.found == said("a", 7)


async def test_a_gateway_writes_the_rest_when_it_stops(server: RedisServer) -> None:
    one, two = Writer(server.url, "a"), Writer(server.url, "b")
    async with members_running(one), running(one.log.run):
        one.write(*range(1000))
    async with writing(two):
        await until(lambda: len(two.found) == 1000)


async def test_what_is_written_without_the_store_follows_once_it_is_back(server: RedisServer) -> None:
    one, two = Writer(server.url, "a"), Writer(server.url, "b")
    async with writing(one, two):
        one.write(1)
        await until(lambda: two.found)
        server.kill()
        await until(lambda: not one.store.connected and not two.store.connected)
        one.write(2)
        server.start()  # empty: nothing of it tells where reading was
        await until(lambda: len(two.found) == 2)
        one.write(3)
        await until(lambda: len(two.found) == 3)
    assert two.found == said("a", 1, 2, 3)


async def test_a_batch_that_was_written_twice_counts_once(server: RedisServer) -> None:
    one, two = Writer(server.url, "a"), Writer(server.url, "b")
    async with writing(one):
        one.write(1)
        await until(lambda: server("XLEN", LOG) == ":1")
    record = server("XRANGE", LOG, "-", "+").split("\r\n")
    copy = record[record.index("r") + 2]
    server("XADD", LOG, "*", "r", copy, "t", "1")
    async with writing(two):
        await until(lambda: two.found)
        two.write(2)
        await until(lambda: server("XLEN", LOG) == ":3")
    assert two.found == said("a", 1)


async def test_the_log_is_bounded_in_bytes_and_time(server: RedisServer) -> None:
    one, two = Writer(server.url, "a", max_bytes=5000), Writer(server.url, "b", max_bytes=5000)
    async with writing(one):
        one.write(*range(100_000, 105_000))
        await until(lambda: not one.log.waiting)
        await until(lambda: int(server("XLEN", LOG).removeprefix(":")) > 0)
    assert 0 < int(server("MEMORY", "USAGE", LOG).removeprefix(":")) < 20_000
    assert 0 < int(server("TTL", LOG).removeprefix(":")) <= 100
    async with writing(two):
        await until(lambda: two.found)
    assert two.found[-1] == ("gateway a", 104_999)
    assert len(two.found) < 1000


HOSTILE = {
    "another type": ("SET", LOG, "x"),
    "no record": ("XADD", LOG, "*", "x", "y"),
    "no signature": ("XADD", LOG, "*", "r", '.["notes","a","<b>","s",1,[1]]', "t", "5"),
    "nested": ("XADD", LOG, "*", "r", "." + "[" * 50_000, "t", "nan"),
    "huge": ("XADD", LOG, "*", "r", "x" * 1_000_000, "t", "inf"),
    "wrong sum": ("XADD", LOG, "*", "r", "x", "t", "900000000000000"),
    "last number": ("XADD", LOG, "18446744073709551615-18446744073709551615", "r", "x", "t", "1"),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_what_others_have_written_there_does_no_harm(server: RedisServer, what: str) -> None:
    one, two = Writer(server.url, "a"), Writer(server.url, "b")
    server(*HOSTILE[what])
    async with writing(one, two):
        one.write(1)
        await until(lambda: two.found)
        if what != "last number":
            server("DEL", LOG) if what == "another type" else None
            server(*HOSTILE[what])
        one.write(2)
        await until(lambda: len(two.found) == 2)
        assert one.store.connected and two.store.connected
        if what != "another type":
            assert one.store.calls["failed"] == two.store.calls["failed"] == 0
    assert two.found == said("a", 1, 2)


async def test_only_members_are_believed(server: RedisServer) -> None:
    one, stranger = Writer(server.url, "a"), Writer(server.url, "b", token="guessed")
    async with writing(one, stranger):
        stranger.write(1)
        one.write(2)
        await until(lambda: server("XLEN", LOG) == ":2" and not one.log.waiting and not stranger.log.waiting)
    assert (one.found, stranger.found) == ([], [])


async def test_what_was_dropped_is_counted_and_said_once(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr("hostler.gateway.cluster.shared_log._MAX_WAITING", 10)
    one, two = Writer(server.url, "a"), Writer(server.url, "b")
    one.write(*range(15))
    one.log.add(b"1" * 50_000)
    async with writing(one, two):
        await until(lambda: len(two.found) == 10)
        one.write(15)
        await until(lambda: len(two.found) == 11)
    assert two.found == said("a", *range(5, 15), 15)
    assert caplog.text.count("entries of the log of notes were dropped") == 1
    assert "6 entries of the log" in caplog.text


async def test_what_was_dropped_is_said_when_a_gateway_stops_without_its_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hostler.gateway.cluster.shared_log._MAX_WAITING", 10)
    one = Writer("redis://127.0.0.1:1", "a")
    one.write(*range(12))
    async with running(one.log.run):
        await until(lambda: not one.log._wake.is_set())
    assert "2 entries of the log of notes were dropped" in caplog.text


@pytest.mark.parametrize("position", [b"", b"[]", b"[" * 10_000, b'["x y",[]]', b'["1-1",[["a","b","c"]]]'])
def test_a_damaged_position_is_the_beginning(position: bytes) -> None:
    subject = Writer("redis://127.0.0.1:9", "a", position=position)
    assert subject.log.position == b'["0-0",[]]'


async def test_a_gateway_that_stops_does_not_wait_for_a_store_that_has_become_slow(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Writer(server.url, "a")
    quick, steps = one.store.run_script, itertools.count()

    async def slow(*arguments: Any, **options: Any) -> Any:
        next(steps)
        await anyio.sleep(0.1)
        return await quick(*arguments, **options)

    monkeypatch.setattr(one.store, "run_script", slow)
    async with one.store.running(), running(one.log.run):
        await until(lambda: one.store.connected)
        one.write(*range(9_000))  # 90 steps
    assert next(steps) < 30
    assert one.log.waiting
