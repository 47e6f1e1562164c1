"""Gateways that see each other through the store."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

import anyio
import msgspec
import pytest
from fakes.certificates import make_pair
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import make_store, running, until

from hostler.gateway.cluster.membership import Member, Membership, Signer

DOCS = Path(__file__).parents[3] / "docs"

pytestmark = [pytest.mark.anyio, needs_redis]


def member(url: str, name: str, *, token: str | None = "secret", cluster: str = "home") -> Membership:
    store = make_store(url, Membership.scripts, cluster)
    return Membership(store, Signer(token, cluster), Member(id=name * 4, name=name, version="1"))


def names(membership: Membership) -> list[str]:
    return sorted(each.name for each in membership.members.values())


async def test_gateways_see_each_other_come_and_go(server: RedisServer) -> None:
    first, second = member(server.url, "a"), member(server.url, "b")
    async with running(first.store.run, first.run):
        await until(lambda: first.store.connected)
        async with running(second.store.run):
            async with running(second.run):
                await until(lambda: names(first) == names(second) == ["a", "b"])
            # It has said that it leaves: this takes a message, not the time after which it would count as gone.
            await until(lambda: names(first) == ["a"])


async def test_a_gateway_that_is_silent_is_gone_after_a_while(server: RedisServer) -> None:
    first, second = member(server.url, "a"), member(server.url, "b")
    async with running(first.store.run, first.run):
        with anyio.CancelScope() as killed:
            async with running(second.store.run, second.run):
                await until(lambda: names(first) == ["a", "b"])
                second.store.state = type(second.store.state)(connected=False, reason="killed", since=0)
                killed.cancel()
        await until(lambda: names(first) == ["a"])


@pytest.mark.parametrize(
    ("after_s", "message", "stays"), [(5.9, b"", True), (5.9, b"bbbb", True), (6.1, b"", False), (0.1, b"-bbbb", False)]
)
async def test_a_store_that_returns_empty_takes_no_member_away_at_once(
    server: RedisServer, after_s: float, message: bytes, stays: bool
) -> None:
    now = [0.0]
    store, signer = make_store(server.url, Membership.scripts, "home"), Signer("secret", "home")
    first = Membership(store, signer, Member(id="aaaa", name="a", version="1"), clock=lambda: now[0])
    first._see([signer.signed(msgspec.json.encode(Member(id="bbbb", name="b", version="1")))])
    assert names(first) == ["a", "b"]
    now[0] = 100.0
    first._on_connect()
    now[0] += after_s
    first._on_message(message)
    first._see([])
    assert names(first) == (["a", "b"] if stays else ["a"])


async def test_a_copied_gateway_is_reported_by_both(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    first, copy = member(server.url, "a"), member(server.url, "a")
    copy.own = msgspec.structs.replace(copy.own, since=2.0, listen=("10.0.0.2:8000",))
    copy._record = copy._signer.signed(msgspec.json.encode(copy.own))
    async with running(first.store.run, first.run, copy.store.run, copy.run):
        await until(lambda: first.twin == copy.own and copy.twin == first.own)
    assert "gateway a at 10.0.0.2:8000 has the same identity, aaaa, as this one" in caplog.text


async def test_a_copy_that_is_gone_is_no_longer_reported(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HEARTBEAT_S", 0.05), ("LIFETIME_S", 0.5)):
        monkeypatch.setattr(f"hostler.gateway.cluster.membership.{name}", value)
    first, copy = member(server.url, "a"), member(server.url, "a")
    copy.report(msgspec.structs.replace(copy.own, since=2.0))
    async with running(first.store.run, first.run):
        async with running(copy.store.run, copy.run):
            await until(lambda: first.twin == copy.own)
            assert first.problem
        await until(lambda: first.twin is None)
        assert not first.problem


async def test_a_copy_is_gone_once_only_own_records_were_found_for_a_while() -> None:
    now = [0.0]
    own = Member(id="a", name="a", version="1", since=1.0)
    signer = Signer("secret", "home")
    store = make_store("redis://127.0.0.1:1", Membership.scripts)
    first = Membership(store, signer, own, clock=lambda: now[0])
    first._reported = True
    records = {
        each: signer.signed(msgspec.json.encode(msgspec.structs.replace(own, since=each))) for each in (1.0, 2.0)
    }

    def see(at: float, record: bytes) -> bool:
        now[0] = at
        first._look_for_twin(record)
        return first.twin is not None

    assert [see(*each) for each in ((0, records[2.0]), (1, records[1.0]), (5, records[1.0]))] == [True, True, True]
    assert see(6, records[2.0])  # they alternate
    assert [see(at, records[1.0]) for at in (7, 12)] == [True, True]
    assert see(14, b"")  # the store was away: nothing is known of this time
    assert [see(at, records[1.0]) for at in (16, 21, 22)] == [True, True, False]


async def test_strangers_and_members_of_other_clusters_do_not_join(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    own, other = member(server.url, "a"), member(server.url, "b")
    strangers = [member(server.url, "c", token="guessed"), member(server.url, "d", token=None)]
    elsewhere = member(server.url, "e", cluster="work")
    everyone = [own, other, *strangers, elsewhere]
    async with running(*(run for each in everyone for run in (each.store.run, each.run))):
        await until(lambda: server("ZCARD", "hostler:home:gateways") == ":4")
        await until(lambda: names(own) == names(other) == ["a", "b"])
        await until(lambda: "a member with another token" in caplog.text)
        assert names(elsewhere) == ["e"]
        assert all(set(names(each)).isdisjoint({"a", "b"}) for each in strangers)


async def test_a_record_that_was_changed_is_refused() -> None:
    signer = Signer("secret", "home")
    record = signer.signed(b'{"id":"a"}')
    assert signer.opened(record) == b'{"id":"a"}'
    assert signer.opened(record.replace(b"a", b"b")) is None
    assert signer.opened(b"") is None
    assert Signer("secret", "work").opened(record) is None
    assert Signer(None, "home").opened(Signer(None, "home").signed(b"x")) == b"x"
    assert Signer(None, "home").opened(record) is None


async def test_a_record_that_cannot_be_read_is_ignored(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    nested = '.{"id": "z", "more": ' + "[" * 100_000 + "]" * 100_000 + "}"
    server("SET", "hostler:home:gateway:z", nested)
    server("ZADD", "hostler:home:gateways", "9999999999999", "z")
    first = member(server.url, "a", token=None)
    async with running(first.store.run, first.run):
        await until(lambda: "it is ignored" in caplog.text)
        assert names(first) == ["a"]


async def test_the_last_known_members_stay_while_the_store_is_away(server: RedisServer) -> None:
    first, second = member(server.url, "a"), member(server.url, "b")
    async with running(first.store.run, first.run, second.store.run, second.run):
        await until(lambda: names(first) == names(second) == ["a", "b"])
        server.kill()
        await until(lambda: not first.store.connected and not second.store.connected)
        assert names(first) == names(second) == ["a", "b"]
        server.start()
        await until(lambda: first.store.connected and second.store.connected)
        await until(lambda: server("ZCARD", "hostler:home:gateways") == ":2")
        await until(lambda: names(first) == names(second) == ["a", "b"])


async def test_every_key_of_the_store_expires(server: RedisServer) -> None:
    first = member(server.url, "a")
    async with running(first.store.run, first.run):
        await until(lambda: server("ZCARD", "hostler:home:gateways") == ":1")
        assert int(server("PTTL", "hostler:home:gateways").removeprefix(":")) > 0
        assert int(server("PTTL", "hostler:home:gateway:aaaa").removeprefix(":")) > 0


async def test_pauses_grow_if_every_command_fails_although_the_store_is_connected(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert server("ACL", "SETUSER", "anna", "on", ">pass", "~*", "&*", "+@all", "-publish") == "+OK"
    first = member(server.url.replace("//", "//anna:pass@"), "a")
    began = time.monotonic()
    async with running(first.store.run, first.run):
        await until(lambda: caplog.text.count("the store is connected") == 5)
        assert time.monotonic() - began > 0.05 + 0.1 + 0.2 + 0.4


async def test_the_documented_rights_of_an_account_suffice(server: RedisServer) -> None:
    rights = re.search(r"`(~hostler[^`]*)`", (DOCS / "cluster.md").read_text())
    assert rights is not None
    limited_account = "on", ">pass", *rights[1].split()
    assert server("ACL", "SETUSER", "anna", *limited_account) == "+OK"
    url = server.url.replace("//", "//anna:pass@")
    first, second = member(url, "a"), member(url, "b")
    async with running(first.store.run, first.run, second.store.run, second.run):
        await until(lambda: names(first) == names(second) == ["a", "b"])


async def test_an_old_record_that_is_written_again_leads_to_no_old_address(server: RedisServer) -> None:
    own, other = member(server.url, "a"), member(server.url, "b")

    def record(since: float, url: str) -> bytes:
        return own._signer.signed(msgspec.json.encode(msgspec.structs.replace(other.own, since=since, url=url)))

    own._see([record(2.0, "http://10.0.0.2:8000")])
    assert own.members["bbbb"].url == "http://10.0.0.2:8000"
    own._see([])
    own._see([record(1.0, "http://10.0.0.1:8000")])
    assert (own.members["bbbb"].name, own.members["bbbb"].url) == ("b", None)
    own._see([record(3.0, "http://10.0.0.3:8000")])
    assert own.members["bbbb"].url == "http://10.0.0.3:8000"


@pytest.mark.parametrize(
    ("url", "certificate", "is_usable"),
    [
        ("http://10.0.0.2:8000", None, True),
        ("https://10.0.0.2:8000", "localhost", True),
        ("https://10.0.0.2:8000", "-----BEGIN CERTIFICATE-----\ndamaged\n-----END CERTIFICATE-----\n", False),
        ("https://10.0.0.2:8000", "é", False),
        ("ftp://10.0.0.2", None, False),
        ("http://10.0.0.2:99999", None, False),
        ("http://10.0.0.2:8000/elsewhere", None, False),
    ],
)
async def test_an_address_that_cannot_be_used_is_none(
    url: str, certificate: str | None, is_usable: bool, tmp_path: Path
) -> None:
    if certificate == "localhost":
        certificate = make_pair(tmp_path, "localhost").pem()
    own = member("redis://127.0.0.1:1", "a")
    other = Member(id="b", name="b", version="1", url=url, certificate=certificate)
    own._see([own._signer.signed(msgspec.json.encode(other))])
    without = msgspec.structs.replace(other, url=None, certificate=None)
    assert own.members["b"] == (other if is_usable else without)
