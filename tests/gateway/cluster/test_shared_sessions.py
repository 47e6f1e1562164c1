"""Sessions of the dashboard at several gateways."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fakes.cluster_members import SharingGateway, gateways_running
from fakes.redis_server import RedisServer, needs_redis
from fakes.store_client import until

from hostler.gateway.auth import keys
from hostler.gateway.auth.keys import KeyRing
from hostler.gateway.auth.sessions import Sessions
from hostler.gateway.cluster.shared_sessions import SharedSessions

pytestmark = [pytest.mark.anyio, needs_redis]


class LoginGateway(SharingGateway):
    def __init__(self, server: RedisServer, name: str, file: Path, *, token: str = "secret") -> None:
        super().__init__(server.url, name, SharedSessions.scripts, token=token)
        self.sessions = Sessions(KeyRing(file), time.monotonic)
        self.shared = SharedSessions(self.store, self.signer, self.sessions, time.time)

    async def log_in(self, key: str) -> str:
        begun = self.sessions.begin(key)
        assert begun is not None
        await self.sessions.published()
        return begun[0]

    def knows(self, session: str) -> bool:
        return self.sessions.client(session) is not None


async def test_a_login_at_one_gateway_is_good_at_all_and_so_is_a_logout(server: RedisServer, tmp_path: Path) -> None:
    bob = keys.add(tmp_path / "keys", "bob", ["read"])
    first, second, stranger = (
        LoginGateway(server, name, tmp_path / "keys", token=token)
        for name, token in [("a", "secret"), ("b", "secret"), ("c", "guessed")]
    )
    async with gateways_running(first, second, stranger):
        session = await first.log_in(bob)
        await until(lambda: second.knows(session))
        assert not stranger.knows(session)
        stored = server("HGETALL", "hostler:home:sessions")
        assert session not in stored
        assert bob not in stored
        second.sessions.end(session)
        await second.sessions.published()
        await until(lambda: not first.knows(session))
    late = LoginGateway(server, "d", tmp_path / "keys")
    async with gateways_running(first, late):
        other = await first.log_in(bob)
        await until(lambda: late.knows(other))
        assert not late.knows(session)
        assert int(server("PTTL", "hostler:home:sessions").removeprefix(":")) > 0


async def test_a_gateway_that_starts_later_knows_the_sessions(server: RedisServer, tmp_path: Path) -> None:
    bob = keys.add(tmp_path / "keys", "bob", ["read"])
    first = LoginGateway(server, "a", tmp_path / "keys")
    async with gateways_running(first):
        session = await first.log_in(bob)
        await until(lambda: server("HLEN", "hostler:home:sessions") == ":1")
    again = LoginGateway(server, "a", tmp_path / "keys")
    async with gateways_running(again):
        await until(lambda: again.knows(session))


async def test_a_store_that_returns_empty_learns_logins_and_logouts_from_the_gateways(
    server: RedisServer, tmp_path: Path
) -> None:
    bob = keys.add(tmp_path / "keys", "bob", ["read"])
    first, second = (LoginGateway(server, name, tmp_path / "keys") for name in "ab")
    async with gateways_running(first, second):
        kept, ended = await first.log_in(bob), await first.log_in(bob)
        await until(lambda: second.knows(kept) and second.knows(ended))
        server.kill()
        await until(lambda: not first.store.connected and not second.store.connected)
        second.sessions.end(ended)
        during = await second.log_in(bob)
        assert first.knows(ended)
        server.start()
        await until(lambda: first.knows(during) and not first.knows(ended))
        assert first.knows(kept)
        assert second.knows(kept)
        assert not second.knows(ended)


async def test_one_keys_logins_at_all_gateways_do_not_push_out_anothers(server: RedisServer, tmp_path: Path) -> None:
    bob, eve = (keys.add(tmp_path / "keys", name, ["read"]) for name in ("bob", "eve"))
    first, second = (LoginGateway(server, name, tmp_path / "keys") for name in "ab")
    async with gateways_running(first, second):
        session = await first.log_in(bob)
        await until(lambda: second.knows(session))
        for number in range(120):
            last = await (first, second)[number % 2].log_in(eve)
        await until(lambda: first.knows(last))
        assert first.knows(session)
        assert second.knows(session)
        assert len(list(first.sessions.known())) <= 51
