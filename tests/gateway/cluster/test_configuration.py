"""What members share: versioned documents in the store, which each of them applies or refuses."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import make_store, running, until

from hostler.gateway.cluster.configuration import (
    LIFETIME_S,
    ConfigurationFollower,
    DocumentStore,
    SharedDocument,
)
from hostler.gateway.cluster.store import Store
from hostler.gateway.cluster_view import ConfigurationState
from hostler.gateway.shared_files import Refused

pytestmark = [pytest.mark.anyio, needs_redis]

KEY = "hostler:home:configuration:keys"


class Follower:
    """A member that applies every text but those with "bad"."""

    def __init__(self, url: str, folder: Path, *, token: str = "secret") -> None:
        self.store = make_store(url, DocumentStore.scripts)
        self.documents = DocumentStore(self.store, token, "home")
        self.applied: list[str] = []
        self.bad = "bad"
        self.now = 0.0
        self._folder = folder
        self.follower = self._make()

    def _make(self) -> ConfigurationFollower:
        file = self._folder / "keys.json"
        return ConfigurationFollower(self.documents, "keys", self.apply, file=file, clock=lambda: self.now)

    async def apply(self, text: str) -> str:
        if self.bad in text:
            raise Refused(f"{text}\nis wrong")
        self.applied.append(text)
        return "a note" if "note" in text else ""

    @property
    def state(self) -> ConfigurationState:
        return self.follower.state

    @property
    def version(self) -> int:
        return self.state.version

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with running(self.store.run, self.follower.run):
            yield

    def restart(self) -> None:
        self.follower = self._make()


def document(version: int, text: str = "", at: float = 1.0) -> SharedDocument:
    return SharedDocument(kind="keys", version=version, at=at, by="anna", text=text or f"text {version}")


@asynccontextmanager
async def publisher(url: str, token: str = "secret") -> AsyncIterator[tuple[Store, DocumentStore]]:
    store = make_store(url, DocumentStore.scripts)
    async with running(store.run):
        await until(lambda: store.connected)
        yield store, DocumentStore(store, token, "home")


async def publish(documents: DocumentStore, new: SharedDocument) -> bool:
    mark, _ = await documents.read("keys")
    return await documents.write("keys", documents.signed(new), mark)


async def test_every_member_applies_what_is_published(server: RedisServer, tmp_path: Path) -> None:
    first, second = Follower(server.url, tmp_path / "a"), Follower(server.url, tmp_path / "b")
    async with first.running(), second.running(), publisher(server.url) as (_, documents):
        assert await publish(documents, document(1))
        await until(lambda: first.version == second.version == 1)
        assert await publish(documents, document(2, "a note"))
        await until(lambda: first.version == second.version == 2)
        assert first.applied == second.applied == ["text 1", "a note"]
        assert first.state == ConfigurationState(kind="keys", version=2, note="a note")
        assert 0 < int(server("TTL", KEY).removeprefix(":")) <= LIFETIME_S


async def test_a_member_that_cannot_says_why_and_goes_on_with_the_last_version(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Follower(server.url, tmp_path)
    async with first.running(), publisher(server.url) as (_, documents):
        await publish(documents, document(1))
        await until(lambda: first.version == 1)
        await publish(documents, document(2, "bad"))
        await until(lambda: first.state.refused == 2)
        assert first.state == ConfigurationState(kind="keys", version=1, refused=2, reason="bad is wrong")
        assert caplog.text.count("shared keys of version 2 are refused: bad is wrong") == 1
        # It is tried again after a while, and said once.
        first.now += 60
        first.follower.look()
        await until(lambda: first.follower._retry_at == 70.0)
        assert caplog.text.count("are refused") == 1
        first.bad = "nothing"
        first.now += 60
        first.follower.look()
        await until(lambda: first.version == 2)
        assert first.state == ConfigurationState(kind="keys", version=2)


async def test_two_writers_at_once_do_not_overwrite_each_other(server: RedisServer) -> None:
    async with publisher(server.url) as (_, one), publisher(server.url) as (_, other):
        marks = [(await each.read("keys"))[0] for each in (one, other)]
        assert marks == ["", ""]
        assert await one.write("keys", one.signed(document(1, "one")), marks[0])
        assert not await other.write("keys", other.signed(document(1, "other")), marks[1])
        found = one.opened("keys", (await one.read("keys"))[1])
        assert found is not None and found.text == "one"


async def test_what_is_known_stays_in_use_without_the_store_and_over_a_restart(
    server: RedisServer, tmp_path: Path
) -> None:
    first = Follower(server.url, tmp_path)
    async with first.running(), publisher(server.url) as (_, documents):
        await publish(documents, document(3))
        await until(lambda: first.version == 3)
    server.kill()
    first.restart()
    assert first.version == 3
    async with first.running():
        await until(lambda: first.applied == ["text 3", "text 3"])
        assert first.version == 3
        # It comes back empty: the member puts back what it knows, and others get it.
        server.start()
        second = Follower(server.url, tmp_path / "b")
        async with second.running():
            await until(lambda: second.version == 3)


async def test_an_older_version_is_never_applied_again(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Follower(server.url, tmp_path)
    async with first.running(), publisher(server.url) as (_, documents):
        old = documents.signed(document(1))
        await publish(documents, document(1))
        await until(lambda: first.version == 1)
        await publish(documents, document(2))
        await until(lambda: first.version == 2)
        mark, newest = await documents.read("keys")
        assert await documents.write("keys", old, mark)  # someone replays it, or a failover has lost version 2
        await until(lambda: server("GET", KEY).endswith(newest.decode()))
        assert "version 1 by anna in the store are from before version 2 by anna" in caplog.text
        first.restart()
        assert first.version == 2
        assert first.applied == ["text 1", "text 2"]


async def test_of_two_documents_with_a_version_all_take_the_later_one(server: RedisServer, tmp_path: Path) -> None:
    first, second = Follower(server.url, tmp_path / "a"), Follower(server.url, tmp_path / "b")
    async with first.running(), publisher(server.url) as (_, documents):
        await publish(documents, document(1, "later", at=2.0))
        await until(lambda: first.version == 1)
    server.kill()
    server.start()
    async with second.running(), publisher(server.url) as (_, documents):
        await publish(documents, document(1, "earlier", at=1.0))
        await until(lambda: second.version == 1)
        async with first.running():
            await until(lambda: second.applied == ["earlier", "later"])
    assert "earlier" not in first.applied


@pytest.mark.parametrize(
    "damage",
    [
        ("SET", KEY, "garbage"),
        ("SET", KEY, ".{}"),
        ("SET", KEY, ""),
        ("LPUSH", KEY, "of another type"),
        ("SETRANGE", KEY, str(5 * 1024 * 1024), "huge"),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
async def test_damage_in_the_store_does_no_harm_and_is_mended(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: tuple[str, ...]
) -> None:
    caplog.set_level(logging.WARNING)
    first = Follower(server.url, tmp_path)
    async with first.running(), publisher(server.url) as (_, documents):
        server(*damage)  # before anything is known
        await publish(documents, document(1))
        await until(lambda: first.version == 1)
        good = server("GET", KEY)
        server("DEL", KEY)
        server(*damage)
        first.follower.look()
        await until(lambda: server("TYPE", KEY) == "+string" and server("GET", KEY) == good)
        assert first.store.connected and first.applied == ["text 1"]


async def test_documents_of_strangers_are_not_believed(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Follower(server.url, tmp_path)
    async with first.running(), publisher(server.url, token="guessed") as (_, stranger):
        await publish(stranger, document(9, "of a stranger"))
        await until(lambda: "the shared keys in the store are damaged, or of another token" in caplog.text)
        async with publisher(server.url) as (_, documents):
            await publish(documents, document(1))
            await until(lambda: first.version == 1)
    assert first.applied == ["text 1"]


def test_a_document_of_another_kind_is_none(tmp_path: Path) -> None:
    documents = Follower("redis://127.0.0.1:1", tmp_path).documents
    record = documents.signed(document(1))
    assert documents.opened("keys", record) == document(1)
    assert documents.opened("profiles", record) is None
    assert documents.opened("keys", b"") is None
    deep = msgspec.json.encode("x").join((b"[" * 100_000, b"]" * 100_000))
    assert documents.opened("keys", documents._signer.signed(deep)) is None


async def test_a_record_of_a_later_release_is_left_as_it_is(server: RedisServer, tmp_path: Path) -> None:
    first = Follower(server.url, tmp_path)
    async with first.running(), publisher(server.url) as (_, documents):
        content = {**msgspec.to_builtins(document(1)), "new": True}
        record = documents._signer.signed(msgspec.json.encode(content))
        assert await documents.write("keys", record, "")
        await until(lambda: first.version == 1)
        # Once a second look has begun, the first one is over.
        for _ in range(2):
            first.follower.look()
            await until(lambda: not first.follower._rounds._wake.is_set())
        assert server("GET", KEY).endswith('"new":true}')


async def test_an_unexpected_error_ends_nothing(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Follower(server.url, tmp_path)

    async def fail(text: str) -> str:
        raise ZeroDivisionError

    first.follower._apply = fail
    async with first.running(), publisher(server.url) as (_, documents):
        await publish(documents, document(1))
        await until(lambda: first.state.refused == 1)
    assert first.state.reason == "an internal error, which this member's log has"
    assert "ZeroDivisionError" in caplog.text


async def test_what_an_old_token_has_signed_stays_in_use_but_not_silently(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = Follower(server.url, tmp_path)
    async with before.running(), publisher(server.url) as (_, documents):
        await publish(documents, document(5))
        await until(lambda: before.version == 5)
    after = Follower(server.url, tmp_path, token="new")
    assert "the shared keys in use were signed with another token" in caplog.text
    said = after.state
    assert said.version == 0 and "`hostler config push keys`" in said.reason
    async with after.running(), publisher(server.url, token="new") as (_, documents):
        await publish(documents, document(1, "bad"))
        await until(lambda: after.state.refused == 1)
        after.restart()
        assert after.state == said
    after.restart()
    async with after.running(), publisher(server.url, token="new") as (_, documents):
        await publish(documents, document(2))
        await until(lambda: after.version == 2)
        after.restart()
        assert after.state == ConfigurationState(kind="keys", version=2)


async def test_what_is_in_use_and_cannot_be_used_anew_is_not_refused(server: RedisServer, tmp_path: Path) -> None:
    first = Follower(server.url, tmp_path)
    async with first.running(), publisher(server.url) as (_, documents):
        await publish(documents, document(1))
        await until(lambda: first.version == 1)
    first.bad = "text"
    first.restart()
    async with first.running():
        await until(lambda: first.state.reason)
    assert first.state == ConfigurationState(kind="keys", version=1, reason="text 1 is wrong")
