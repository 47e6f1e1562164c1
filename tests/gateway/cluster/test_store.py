"""The connection to the store: it is left out at once when it fails, and used again once it works."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from fakes.ports import free_port
from fakes.redis_server import RedisServer, needs_redis, redis_sentinel, redis_server
from fakes.store_client import make_store, running, until

from hostler.gateway.cluster.store import Script, Store, StoreAway

pytestmark = [pytest.mark.anyio, needs_redis]


async def answers(store: Store) -> bool:
    try:
        await store.execute("SET", store.prefix + "x", b"1", "PX", 1000, limit_s=1.0)
    except StoreAway:
        return False
    return True


async def test_commands_of_many_callers_get_their_own_answers(server: RedisServer) -> None:
    store, found = make_store(server.url), {}
    async with running(store.run):
        await until(lambda: store.connected)

        async def echo(number: int) -> None:
            found[number] = await store.execute("ECHO", number, limit_s=5.0)

        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(echo, number)
    assert found == {number: str(number).encode() for number in range(200)}


async def test_scripts_are_loaded_and_run_on_prefixed_keys(server: RedisServer) -> None:
    script = Script("redis.call('SET', KEYS[1], ARGV[1]); return KEYS[1]")
    store = make_store(server.url, [script])
    async with running(store.run):
        await until(lambda: store.connected)
        assert await store.run_script(script, ["a"], "value", limit_s=5.0) == b"hostler:home:a"
    assert server("GET", "hostler:home:a") == "$5\r\nvalue"


async def test_nothing_waits_for_a_store_that_was_never_there() -> None:
    store = make_store(f"redis://127.0.0.1:{free_port()}")
    async with running(store.run):
        with pytest.raises(StoreAway):
            await store.execute("PING")
    assert store.calls == {"away": 1}


@pytest.mark.parametrize("fault", ["kill", "suspend", "full", "read_only", "no_scripts"])
async def test_the_store_is_left_out_after_its_first_failure_and_used_again_once_it_works(
    server: RedisServer, fault: str
) -> None:
    script = Script("redis.call('SET', KEYS[1], '1', 'PX', 1000) return 1")
    store = make_store(server.url, [script])
    faults = {
        "kill": (server.kill, server.start),
        "suspend": (server.suspend, server.resume),
        "full": (
            lambda: server("CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction"),
            lambda: server("CONFIG", "SET", "maxmemory", "0"),
        ),
        "read_only": (
            lambda: server("REPLICAOF", "127.0.0.1", str(free_port())),
            lambda: server("REPLICAOF", "NO", "ONE"),
        ),
        "no_scripts": (lambda: server("SCRIPT", "FLUSH"), lambda: None),
    }
    break_it, mend_it = faults[fault]
    async with running(store.run):
        await until(lambda: store.connected)
        break_it()
        with pytest.raises(StoreAway):
            await store.run_script(script, ["x"], limit_s=0.1)
        assert not store.connected
        assert store.state.reason
        failed = store.calls["failed"]
        if fault != "no_scripts":
            for _ in range(100):
                with pytest.raises(StoreAway):
                    await store.execute("PING")
            assert store.calls["failed"] == failed
        mend_it()
        await until(lambda: store.connected)
        assert await store.run_script(script, ["x"], limit_s=5.0) == 1


async def test_a_gateway_that_stops_warns_of_nothing(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(server.url)
    async with running(store.run):
        await until(lambda: store.connected)
    assert store.state.reason == "the gateway stops"
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_slow_store_is_not_used(server: RedisServer) -> None:
    store = make_store(server.url)
    async with running(store.run):
        await until(lambda: store.connected)
        with pytest.raises(StoreAway):
            await store.execute("DEBUG", "SLEEP", "0.5", limit_s=0.02)


async def test_an_answer_that_came_in_time_counts_although_the_loop_was_busy(server: RedisServer) -> None:
    store = make_store(server.url)
    async with running(store.run):
        await until(lambda: store.connected)

        async def block() -> None:
            while "blocked_clients:1" not in server("INFO", "clients"):  # noqa: ASYNC110 - until the command has arrived
                await asyncio.sleep(0)
            server("RPUSH", "list", "there")  # the answer to it
            time.sleep(0.5)  # noqa: ASYNC251 - the point of the test

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(block)
            assert list(await store.execute("BLPOP", "list", 0, limit_s=0.4)) == [b"list", b"there"]
        assert store.connected


async def test_a_caller_that_leaves_disturbs_no_other(server: RedisServer) -> None:
    store = make_store(server.url)
    async with running(store.run):
        await until(lambda: store.connected)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.execute, "PING")
                scope.cancel()
        assert await store.execute("ECHO", "there", limit_s=5.0) == b"there"
        assert store.connected


async def test_messages_reach_their_listeners_also_after_a_failure(server: RedisServer) -> None:
    store, heard = make_store(server.url), []
    store.subscribe("news", heard.append)
    async with running(store.run):
        await until(lambda: store.connected)
        server("PUBLISH", "hostler:home:news", "one")
        await until(lambda: heard == [b"one"])
        server("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: not store.connected)
        await until(lambda: store.connected)
        server("PUBLISH", "hostler:home:news", "two")
        await until(lambda: heard == [b"one", b"two"])


async def test_a_subscription_without_an_answer_is_tried_again() -> None:
    connected = subscriptions = 0

    async def serve(connection: SocketStream) -> None:
        nonlocal connected, subscriptions
        silent = connected > 0  # beside the connection for commands there is one that subscribes
        subscriptions += silent
        connected += 1
        async with connection:
            async for received in connection:
                if not silent:
                    await connection.send(b"+OK\r\n" * received.count(b"*"))
        connected -= 1

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    store = make_store(f"redis://127.0.0.1:{listener.extra(SocketAttribute.local_port)}")
    store.subscribe("news", lambda message: None)
    async with listener, running(partial(listener.serve, serve), store.run):
        await until(lambda: subscriptions > 1)


async def test_sentinels_lead_to_the_new_master_after_a_failover(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path / "a") as first,
        redis_server(tmp_path / "b", "--replicaof", "127.0.0.1", str(first.port)) as second,
        redis_sentinel(tmp_path / "sentinel", first.port) as sentinel,
    ):
        await until(lambda: "slaves=1" in sentinel("INFO", "sentinel"))
        store = make_store(f"redis+sentinel://127.0.0.1:{sentinel.port}/main")
        async with running(store.run):
            await until(lambda: store.connected)
            first.kill()
            assert not await answers(store)
            await until(lambda: store.connected)
            assert await answers(store)
            assert "role:master" in second("INFO", "replication")


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (LookupError("on purpose"), 2),
        (RuntimeError("on purpose"), 2),
        (RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed"), 0),
        (OSError("on purpose"), 0),
    ],
)
async def test_an_unexpected_error_is_logged_and_the_connection_made_anew(
    server: RedisServer, caplog: pytest.LogCaptureFixture, error: Exception, logged: int
) -> None:
    class Broken(Script):
        """A script whose name cannot be kept, the first two times."""

        tries = 0

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "sha" and value:
                self.__dict__["tries"] = self.tries + 1
                if self.tries < 3:
                    raise error
            super().__setattr__(name, value)

    script = Broken("return 1")
    store = make_store(server.url, [script])
    async with running(store.run):
        await until(lambda: store.connected)
    assert (script.tries, caplog.text.count("unhandled exception in the connection to the store")) == (3, logged)
