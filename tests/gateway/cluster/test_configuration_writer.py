"""Publishing what members share, as a command does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import make_store, running, until

from hostler.gateway.cluster.configuration import CHANNEL, ConfigurationFollower, DocumentStore
from hostler.gateway.cluster.configuration_writer import (
    ConfigurationWriter,
    UnreadableDocument,
    WriterError,
    open_writer,
)
from hostler.gateway.cluster.hosts import HostKeys, HostRecord, HostReporter
from hostler.gateway.cluster.membership import Member, Membership, Signer
from hostler.gateway.cluster_settings import ClusterSettings
from hostler.gateway.cluster_view import ConfigurationState
from hostler.gateway.shared_files import MAX_BYTES

pytestmark = [pytest.mark.anyio, needs_redis]


def writer(server: RedisServer, token: str = "secret") -> AbstractAsyncContextManager[ConfigurationWriter]:
    return open_writer(ClusterSettings(store=server.url, name="home"), token)


@asynccontextmanager
async def members(server: RedisServer) -> AsyncIterator[None]:
    """A gateway that uses version 4 of the keys, and a host that refuses version 7 of the profiles."""
    store = make_store(server.url, (*Membership.scripts, *HostReporter.scripts))
    gateway = Membership(store, Signer("secret", "home"), Member(id="a", name="one", version="1"))
    gateway.report(msgspec.structs.replace(gateway.own, configuration=(ConfigurationState(kind="keys", version=4),)))
    refusal = ConfigurationState(kind="profiles", version=6, refused=7, reason="no file")
    record = HostRecord(id="b", name="attic", version="1", url="http://10.0.0.1:8080", configuration=(refusal,))

    def own() -> HostRecord:
        return record

    host = HostReporter(store, HostKeys("secret", "home"), "b", own)
    async with running(store.run, gateway.run, host.run):
        await until(lambda: server("EXISTS", "hostler:home:host:b", "hostler:home:gateway:a") == ":2")
        yield


async def test_versions_follow_each_other(server: RedisServer) -> None:
    async with writer(server) as one:
        assert await one.current("keys") is None
        assert [(await one.publish("keys", text, by="anna")).version for text in ("x", "y", "")] == [1, 2, 3]
        assert (await one.publish("profiles", "z", by="anna")).version == 1
        found = await one.current("keys")
        assert found is not None
        assert (found.version, found.by, found.text) == (3, "anna", "")


async def test_a_version_is_newer_than_what_any_member_knows(server: RedisServer) -> None:
    async with members(server), writer(server) as one:
        shown = {(each.role, each.member): each.configuration[0].version for each in await one.states()}
        assert shown == {("gateway", "one"): 4, ("host", "attic"): 6}
        assert (await one.publish("keys", "x", by="anna")).version == 5  # the store has lost them
        assert (await one.publish("profiles", "x", by="anna")).version == 8


class Follower:
    """A member that uses the keys, and reports which ones."""

    def __init__(self, url: str, folder: Path, name: str) -> None:
        self.store = make_store(url, (*Membership.scripts, *DocumentStore.scripts))
        self.gateway = Membership(self.store, Signer("secret", "home"), Member(id=name, name=name, version="1"))
        self.texts: list[str] = []
        self.follower = ConfigurationFollower(
            DocumentStore(self.store, "secret", "home"), "keys", self._apply, file=folder / f"{name}.json",
            clock=time.monotonic, on_state=self._report,
        )  # fmt: skip
        self.store.subscribe(CHANNEL, lambda _: self.follower.look())
        self.store.on_connect(self.follower.look)
        self._report()

    async def _apply(self, text: str) -> str:
        self.texts.append(text)
        return ""

    def _report(self) -> None:
        self.gateway.report(msgspec.structs.replace(self.gateway.own, configuration=(self.follower.state,)))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with running(self.store.run, self.gateway.run, self.follower.run):
            yield


def restart(server: RedisServer) -> None:
    """The store comes back, and has lost everything."""
    server.kill()
    server.start()


async def test_what_is_published_while_all_members_are_away_is_what_they_use_when_they_return(
    server: RedisServer, tmp_path: Path
) -> None:
    first, second = (Follower(server.url, tmp_path, name) for name in "ab")
    async with first.running(), second.running(), writer(server) as one:
        for text in ("x", "y", "z"):
            await one.publish("keys", text, by="anna")
        await until(lambda: first.texts[-1:] == second.texts[-1:] == ["z"])
    restart(server)
    async with writer(server) as one:
        await one.publish("keys", "new", by="anna")
    await use_what_was_published(server, tmp_path)
    restart(server)
    await use_what_was_published(server, tmp_path)


async def use_what_was_published(server: RedisServer, folder: Path) -> None:
    first, second = (Follower(server.url, folder, name) for name in "ab")
    async with first.running():
        await until(lambda: first.texts[-1:] == ["new"])
        async with second.running():
            await until(lambda: second.texts[-1:] == ["new"])
            await until(lambda: '"text":"new"' in server("GET", "hostler:home:configuration:keys"))


async def test_what_members_put_back_first_is_not_newer_than_what_is_published_then(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Follower(server.url, tmp_path, "a")
    async with first.running(), writer(server) as one:
        monkeypatch.setattr(time, "time", lambda: 2e9)  # of a machine whose clock is years ahead
        await one.publish("keys", "x", by="anna")
        monkeypatch.undo()
        await until(lambda: first.texts == ["x"])
        await until(lambda: "version" in server("GET", "hostler:home:gateway:a"))
        restart(server)
    first = Follower(server.url, tmp_path, "a")
    async with first.running():
        await until(lambda: first.follower.state.version == 1 and server("EXISTS", "hostler:home:gateway:a") == ":1")
        async with writer(server) as one:
            server("DEL", "hostler:home:configuration:keys")
            assert (await one.publish("keys", "y", by="anna")).version == 2
            await until(lambda: first.texts[-1] == "y")


async def test_what_others_have_published_since_is_not_overwritten(server: RedisServer) -> None:
    async with writer(server) as one:
        await one.publish("keys", "x", by="anna", base=0)
        with pytest.raises(WriterError, match="keys have version 1 by now, not 0"):
            await one.publish("keys", "y", by="bob", base=0)
        assert (await one.publish("keys", "y", by="bob", base=1)).version == 2


async def test_of_two_at_once_one_is_refused(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with writer(server) as one, writer(server) as other:
        ask = one.members

        async def after_the_other() -> object:
            await other.publish("keys", "first", by="bob")
            return await ask()

        monkeypatch.setattr(one, "members", after_the_other)
        with pytest.raises(WriterError, match="were changed by another one at the same time"):
            await one.publish("keys", "second", by="anna")
        found = await other.current("keys")
        assert found is not None and found.text == "first"


async def test_what_no_member_could_take_is_not_published(server: RedisServer) -> None:
    async with writer(server) as one:
        with pytest.raises(WriterError, match="are too many"):
            await one.publish("keys", "x" * (MAX_BYTES + 1), by="anna")
        assert await one.current("keys") is None
        await one.publish("keys", "\x01" * MAX_BYTES, by="anna")  # as long as any record can be
        found = await one.current("keys")
        assert found is not None and len(found.text) == MAX_BYTES


async def test_records_that_cannot_be_read_are_no_members(server: RedisServer) -> None:
    signer, hosts = Signer("secret", "home"), HostKeys("secret", "home").signer
    for index, prefix, sign in (("gateways", "gateway", signer), ("hosts", "host", hosts)):
        for name, content in (("x", b"[" * 1000), ("y", msgspec.json.encode({"id": 1}))):
            server("SET", f"hostler:home:{prefix}:{name}", sign.signed(content).decode())
            server("ZADD", f"hostler:home:{index}", "1", name)
        server("SET", f"hostler:home:{prefix}:z", "garbage")
        server("ZADD", f"hostler:home:{index}", "1", "z")
    async with writer(server) as one:
        assert await one.states() == []


async def test_what_another_token_has_signed_is_not_nothing(server: RedisServer) -> None:
    async with writer(server, "old") as old, writer(server) as one:
        await old.publish("keys", "x", by="anna")
        server("LPUSH", "hostler:home:configuration:profiles", "wrong")
        for kind in ("keys", "profiles"):
            with pytest.raises(
                UnreadableDocument, match=f"{kind} in the store are damaged or signed with another token"
            ):
                await one.current(kind)
            assert (await one.publish(kind, "y", by="anna")).version == 1
            assert await one.current(kind) is not None


async def test_a_store_that_is_away_is_named(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    found: ConfigurationWriter
    async with writer(server) as found:
        server.kill()
        with pytest.raises(WriterError, match="the cluster's store does not answer"):
            for _ in range(3):
                await found.current("keys")
        with pytest.raises(WriterError, match="the cluster's store does not answer"):
            await found.publish("keys", "x", by="anna")
        with pytest.raises(WriterError, match="the cluster's store does not answer"):
            await found.states()
    monkeypatch.setattr("hostler.gateway.cluster.configuration_writer._CONNECT_S", 0.1)
    with pytest.raises(WriterError, match=r"the cluster's store redis://127.0.0.1:\d+ does not answer"):
        async with writer(server):
            pass
