"""Hosts that report themselves in the store, and gateways that find them there."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest
from fakes.certificates import make_pair
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import make_store, running, until

from hostler.gateway.cluster.hosts import HostDirectory, HostKeys, HostRecord, HostReporter, opened_host
from hostler.gateway.cluster.membership import Member, Membership, Signer
from hostler.gateway.wake_settings import WakeSettings

pytestmark = [pytest.mark.anyio, needs_redis]

URL = "http://192.168.1.9:8080"


class ReportingHost:
    """A host that reports itself while it runs."""

    def __init__(self, url: str, name: str, *, token: str = "secret", at: str = URL, since: float = 0.0) -> None:
        self.record = HostRecord(id=name * 4, name=name, version="1", url=at, since=since)
        self.store = make_store(url, HostReporter.scripts)
        self.reporter = HostReporter(self.store, HostKeys(token, "home"), self.record.id, self._own)
        self.runs = (self.store.run, self.reporter.run)

    def _own(self) -> HostRecord:
        return self.record


class Gateway:
    """A gateway's view of hosts. `reachable` are the ids of those that it reaches."""

    def __init__(
        self, url: str, file: Path | None = None, forgotten_s: float = 600.0, wakeable_s: float = 600.0
    ) -> None:
        self.store = make_store(url, HostDirectory.scripts)
        self.reachable: set[str] = set()
        self.changes: list[list[str]] = []
        self.directory = HostDirectory(
            self.store,
            HostKeys("secret", "home"),
            file=file,
            clock=time.monotonic,
            is_reachable=self.reachable.__contains__,
            on_change=self._on_change,
            forgotten_s=forgotten_s,
            wakeable_s=wakeable_s,
        )
        self.runs = (self.store.run, self.directory.run)

    def _on_change(self, hosts: Mapping[str, HostRecord]) -> None:
        self.changes.append(self.names)

    @property
    def names(self) -> list[str]:
        return sorted(each.name for each in self.directory.hosts.values())


async def test_a_host_is_found_when_it_starts_and_forgotten_once_it_has_left(server: RedisServer) -> None:
    gateway, host = Gateway(server.url, forgotten_s=0.3), ReportingHost(server.url, "a")
    async with running(*gateway.runs):
        await until(lambda: gateway.store.connected)
        async with running(*host.runs):
            await until(lambda: gateway.names == ["a"])
        await until(lambda: gateway.names == [])
    assert gateway.changes == [["a"], []]


async def test_a_host_without_the_store_stays_while_it_is_reachable(server: RedisServer) -> None:
    gateway, host = Gateway(server.url, forgotten_s=0.3), ReportingHost(server.url, "a")
    gateway.reachable.add(host.record.id)
    async with running(*gateway.runs):
        async with running(*host.runs):
            await until(lambda: gateway.names == ["a"])
        await until(lambda: server("ZCARD", "hostler:home:hosts") == ":0")
        async with running(*(late := ReportingHost(server.url, "b")).runs):
            await until(lambda: gateway.names == ["a", "b"])
        assert late.record.id not in gateway.reachable
        await until(lambda: gateway.names == ["a"])
        gateway.reachable.clear()
        await until(lambda: gateway.names == [])


async def test_a_host_that_can_be_woken_stays_longer(server: RedisServer) -> None:
    gateway = Gateway(server.url, forgotten_s=0.2, wakeable_s=600)
    awake, asleep = ReportingHost(server.url, "a"), ReportingHost(server.url, "b")
    asleep.record = msgspec.structs.replace(asleep.record, wake=WakeSettings(mac="01:23:45:67:89:ab"))
    async with running(*gateway.runs):
        async with running(*awake.runs, *asleep.runs):
            await until(lambda: gateway.names == ["a", "b"])
        await until(lambda: gateway.names == ["b"])
        assert [each.wake for each in gateway.directory.hosts.values()] == [asleep.record.wake]
    brief = Gateway(server.url, forgotten_s=600, wakeable_s=0.2)
    async with running(*brief.runs):
        async with running(*asleep.runs):
            await until(lambda: brief.names == ["b"])
        await until(lambda: brief.names == [])


async def test_hosts_stay_without_the_store_and_over_restarts(server: RedisServer, tmp_path: Path) -> None:
    file = tmp_path / "hosts.json"
    gateway, host = Gateway(server.url, file, forgotten_s=0.3), ReportingHost(server.url, "a")
    async with running(*gateway.runs, *host.runs):
        await until(lambda: gateway.names == ["a"])
        server.kill()
        await until(lambda: not gateway.store.connected)
        assert gateway.names == ["a"]
    restarted = Gateway(server.url, file)
    restarted.directory.restore()
    assert (restarted.names, restarted.changes) == (["a"], [["a"]])


async def test_a_moved_host_is_found_at_its_new_address(server: RedisServer) -> None:
    gateway, host = Gateway(server.url), ReportingHost(server.url, "a")
    async with running(*gateway.runs, *host.runs):
        await until(lambda: gateway.names == ["a"])
        host.record = msgspec.structs.replace(host.record, url="http://192.168.1.10:8080")
        await until(lambda: [each.url for each in gateway.directory.hosts.values()] == [host.record.url])


async def test_a_copied_machine_does_not_take_the_place_of_its_original(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, first = Gateway(server.url), ReportingHost(server.url, "a", since=1.0)
    copy = ReportingHost(server.url, "a", since=2.0, at="http://192.168.1.10:8080")
    async with running(*gateway.runs):
        async with running(*first.runs):
            await until(lambda: gateway.names == ["a"])
            async with running(*copy.runs):
                await until(lambda: copy.reporter.twin == first.record)
                assert f"host a at {URL} has the same identity, aaaa, as this one" in caplog.text
                assert "use the one that was there first" in caplog.text
                await until(lambda: first.store.connected and first.reporter.twin is None)
            assert server("EXISTS", "hostler:home:host:aaaa") == ":1"  # its leaving has removed nothing
        assert [each.url for each in gateway.directory.hosts.values()] == [URL]
        # Once the original is gone, it joins.
        async with running(*copy.runs):
            await until(lambda: [each.url for each in gateway.directory.hosts.values()] == [copy.record.url])


@pytest.mark.parametrize("with_beat", [False, True])
async def test_an_old_record_that_is_written_again_keeps_no_host_from_joining(
    server: RedisServer, caplog: pytest.LogCaptureFixture, with_beat: bool
) -> None:
    gateway, now = Gateway(server.url), time.time()
    before = ReportingHost(server.url, "a", since=now - 2, at="http://192.168.1.10:8080")
    async with running(*gateway.runs, *before.runs):
        await until(lambda: gateway.names == ["a"])
        names = ("hostler:home:host:aaaa", *(("hostler:home:host-beat:aaaa",) if with_beat else ()))
        old = {name: server("GET", name).partition("\r\n")[2] for name in names}
    host = ReportingHost(server.url, "a", since=now)

    async def write_again() -> None:
        while True:
            for name, record in old.items():
                server("SET", name, record)
            await anyio.sleep(0.3)

    async with running(*gateway.runs, *host.runs, write_again):
        await until(lambda: [each.url for each in gateway.directory.hosts.values()] == [URL])
        assert host.reporter.twin is None
    assert "has the same identity" not in caplog.text


async def test_a_flood_of_messages_makes_a_gateway_look_no_more_than_ten_times_a_second(server: RedisServer) -> None:
    gateway, host = Gateway(server.url), ReportingHost(server.url, "a")

    def flood() -> None:
        for _ in range(2000):
            server("PUBLISH", "hostler:home:hosts", "x")

    async with running(*gateway.runs):
        await until(lambda: gateway.store.connected)
        before, began = gateway.store.calls["ok"], time.monotonic()
        await anyio.to_thread.run_sync(flood)
        async with running(*host.runs):
            await until(lambda: gateway.names == ["a"])
        looked = gateway.store.calls["ok"] - before
        assert looked <= 10 * (time.monotonic() - began) + 2


async def test_of_two_copies_that_come_at_once_one_says_that_it_does_not_join(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, first = Gateway(server.url), ReportingHost(server.url, "a", since=1.0)
    other = ReportingHost(server.url, "a", since=2.0, at="http://192.168.1.10:8080")
    async with running(*gateway.runs, first.store.run, other.store.run):
        await until(lambda: first.store.connected and other.store.connected)
        first.reporter._reported = other.reporter._reported = True  # neither has seen the other when it looked
        async with running(first.reporter.run, other.reporter.run):
            await until(lambda: first.reporter.twin is not None)
            await until(lambda: [each.url for each in gateway.directory.hosts.values()] == [other.record.url])
    assert "use the one that has started last" in caplog.text


async def test_a_host_is_known_once_the_same_supervisor_answers_at_an_address_of_the_file() -> None:
    known: list[int] = []
    seen: list[list[str]] = []
    keys = HostKeys("secret", "home")
    directory = HostDirectory(
        make_store("redis://127.0.0.1:1"), keys, file=None, clock=time.monotonic, is_reachable=lambda _: True,
        on_change=lambda hosts: seen.append(sorted(hosts)), is_known=lambda host: host.generation in known,
    )  # fmt: skip
    hosts = [HostRecord(id=name, name=name, version="1", url=URL, generation=ord(name)) for name in "ab"]
    for generations in ([], [ord("a")], [ord("a")], []):
        known[:] = generations
        directory._see([keys.signer.signed(msgspec.json.encode(host)) for host in hosts])
    assert seen == [["a", "b"], ["b"], ["a", "b"]]


async def test_something_else_at_a_place_of_the_store_is_removed_and_keeps_nobody_from_it(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, host = Gateway(server.url), ReportingHost(server.url, "a")
    server("SET", "hostler:home:hosts", "wrong")
    server("LPUSH", "hostler:home:host:aaaa", "wrong")
    async with running(*gateway.runs, *host.runs):
        await until(lambda: gateway.names == ["a"])
        server("SET", "hostler:home:hosts", "wrong again")
        await until(lambda: server("ZCARD", "hostler:home:hosts") == ":1")
        assert gateway.store.connected and host.store.connected
    assert "hostler:home:hosts in the store was overwritten: a string instead of a zset; it is removed" in caplog.text
    assert "hostler:home:host:aaaa in the store was overwritten: a list" in caplog.text
    assert "the store cannot be used" not in caplog.text


def record(name: str, url: str = URL) -> bytes:
    return msgspec.json.encode(HostRecord(id=name * 4, name=name, version="1", url=url))


async def test_strangers_do_not_join(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    signer = HostKeys("secret", "home").signer
    records = {
        "of another token": HostKeys("guessed", "home").signer.signed(record("b")),
        "of another cluster": HostKeys("secret", "work").signer.signed(record("c")),
        "without a signature": b"." + record("d"),
        "of a gateway": Signer("secret", "home").signed(record("e")),
        "with a socket": signer.signed(record("f", "unix:/run/x")),
        "with a path": signer.signed(record("g", f"{URL}/latest/meta-data")),
        "of another release": signer.signed(b'{"id": "h", "name": "h"}'),
    }
    for name, written in records.items():
        server("SET", f"hostler:home:host:{name}", written.decode())
        server("ZADD", "hostler:home:hosts", "9999999999999", name)
    gateway, own = Gateway(server.url), ReportingHost(server.url, "a")
    async with running(*gateway.runs, *own.runs):
        await until(lambda: gateway.names == ["a"])
    assert len(gateway.directory._refused) == len(records)
    assert caplog.text.count("a host with another token, or of another release") == 1


def test_an_old_record_moves_no_host_back() -> None:
    signer, directory = HostKeys("secret", "home").signer, Gateway("redis://127.0.0.1:1").directory

    def see(number: int, since: float) -> str:
        url = f"http://192.168.1.{number}:8080"
        host = HostRecord(id="a", name="a", version="1", url=url, since=since)
        directory._see([signer.signed(msgspec.json.encode(host))])
        return directory.hosts["a"].url.removeprefix("http://192.168.1.").removesuffix(":8080")

    assert [see(1, 100.0), see(2, 200.0), see(1, 100.0), see(3, 200.0), see(4, 300.0)] == ["1", "2", "2", "3", "4"]


def test_a_record_that_stays_the_same_is_opened_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[bytes] = []

    def open_(signer: Signer, record: bytes) -> HostRecord | None:
        opened.append(record)
        return opened_host(signer, record)

    monkeypatch.setattr("hostler.gateway.cluster.hosts.opened_host", open_)
    directory = Gateway("redis://127.0.0.1:1").directory
    keys = HostKeys("secret", "home")
    host = HostRecord(id="a", name="a", version="1", url=URL)
    record, renamed = (
        keys.signer.signed(msgspec.json.encode(each)) for each in (host, msgspec.structs.replace(host, name="b"))
    )
    for records in ([record, b"stranger"], [record, b"stranger"], [renamed, b"stranger"], [renamed]):
        directory._see(records)
    assert opened == [record, b"stranger", renamed]
    assert [each.name for each in directory.hosts.values()] == ["b"]
    assert caplog.text.count("it is ignored") == 1


def test_the_record_of_a_gateway_is_none_of_a_host() -> None:
    record = Signer("secret", "home").signed(msgspec.json.encode(Member(id="a", name="a", version="1")))
    assert HostKeys("secret", "home").signer.opened(record) is None
    assert Membership.scripts == HostReporter.scripts


def test_each_host_has_a_token_of_its_own() -> None:
    keys = HostKeys("secret", "home")
    assert keys.token("a") == HostKeys("secret", "home").token("a")
    assert len({keys.token("a"), keys.token("b"), HostKeys("secret", "work").token("a"), "secret"}) == 4


def test_a_record_with_something_else_than_a_certificate_is_refused(tmp_path: Path) -> None:
    localhost = make_pair(tmp_path, "localhost")
    keys = HostKeys("secret", "home")
    record = HostRecord(id="a", name="a", version="1", url=URL)
    for text, accepted in ((Path(localhost.cert).read_text(), True), ("no certificate", False), ("é", False)):
        signed = keys.signer.signed(msgspec.json.encode(msgspec.structs.replace(record, certificate=text)))
        assert (opened_host(keys.signer, signed) is not None) is accepted
