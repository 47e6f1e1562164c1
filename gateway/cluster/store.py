"""The connection to the cluster's Valkey or Redis. It is used as long as it answers at once; nothing ever waits for it longer."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from hostler.gateway.cluster_settings import StoreAddress

logger = logging.getLogger(__name__)

#: What a request waits for the store at most, and what a step in the background does, in seconds.
REQUEST_LIMIT_S = 0.02
BACKGROUND_LIMIT_S = 0.25
#: Until a new connection is made after one has failed, in seconds: the first time, and at most.
_RETRY_S, _MAX_RETRY_S = 0.05, 1.0
_CONNECT_S = 1.0
#: Writes in a row that have to succeed in time before the store is used again.
_PROOFS = 3
#: Members publish at least every few seconds: a subscription that is silent for longer than this is lost, in seconds.
_SILENCE_S = 10.0
#: What the library raises when the connection fails. `RuntimeError`: uvloop's, for one that has just been closed.
_FAILURES = (RedisError, OSError, TimeoutError, RuntimeError)
#: Passes of the event loop in which an answer that has arrived in time, while the loop was busy, reaches its caller.
_PASSES = 4


class StoreAway(Exception):
    """The store cannot be used now; go on with local values."""


class Script:
    """A step in Lua that the server runs as a whole. `source` is loaded once per connection; `types` are those of its keys,
    for scripts that do not look themselves."""

    def __init__(self, source: str, *, types: Sequence[str] = ()) -> None:
        self.source = source
        self.types = tuple(types)
        self.sha: bytes | str = ""


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the store is in use; `reason` and `since` (seconds since the epoch) are those of the last change."""

    connected: bool
    reason: str
    since: float


class _Command(NamedTuple):
    """`types` are those that its keys should have."""

    words: tuple[Any, ...]
    answer: asyncio.Future[Any]
    types: Sequence[tuple[str, str]]


class Store:
    """Commands for the store, and the messages of its channels. `run` until cancelled.

    The first command that fails or is late opens the circuit: from then on `execute` raises `StoreAway` without waiting,
    until a new connection has proven that it is fast and can be written. Commands of several callers are sent together, in
    the order of the calls. All keys start with `prefix`. What something else has put at one of them is removed, if its type
    is another one; the command fails, and the store stays in use. `calls` counts commands of requests by their outcome.
    """

    def __init__(
        self,
        address: StoreAddress,
        *,
        name: str,
        scripts: Sequence[Script],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.prefix = f"hostler:{name}:"
        self.calls: Counter[str] = Counter()
        self.state = StoreState(connected=False, reason="not yet connected", since=round(wall(), 3))
        self._address = address
        self._scripts = scripts
        self._clock = clock
        self._wall = wall
        self._queue: deque[_Command] = deque()
        self._sent: Sequence[_Command] = ()
        self._wake = asyncio.Event()
        self._broken = asyncio.Event()
        self._on_connect: list[Callable[[], None]] = []
        self._channels: dict[bytes, Callable[[bytes], None]] = {}

    @property
    def connected(self) -> bool:
        """Whether commands are sent at all."""
        return self.state.connected

    def on_connect(self, listener: Callable[[], None]) -> None:
        """Call `listener` each time that the store can be used again, before any other command is sent, and when an entry
        of it was lost."""
        self._on_connect.append(listener)

    def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        """Call `listener` with each message of a channel. To be called before `run`; messages may get lost."""
        self._channels[(self.prefix + channel).encode()] = listener

    async def run_script(
        self,
        script: Script,
        keys: Sequence[str],
        *arguments: str | bytes | int | float,
        limit_s: float = REQUEST_LIMIT_S,
    ) -> Any:
        """Run a script; `keys` are without the prefix. Raises `StoreAway`."""
        named = [self.prefix + key for key in keys]
        types = tuple(zip(named, script.types, strict=False))
        return await self.execute("EVALSHA", script.sha, len(named), *named, *arguments, limit_s=limit_s, types=types)

    async def execute(
        self,
        *words: str | bytes | int | float,
        limit_s: float = REQUEST_LIMIT_S,
        types: Sequence[tuple[str, str]] = (),
    ) -> Any:
        """Send a command and return its answer; `types` are those that its keys should have. Raises `StoreAway`."""
        if not self.connected:
            self.calls["away"] += 1
            raise StoreAway
        loop = asyncio.get_running_loop()
        command = _Command(words, loop.create_future(), types)
        self._queue.append(command)
        self._wake.set()
        timer = loop.call_later(limit_s, self._expire, command, limit_s, _PASSES)
        try:
            answer = await command.answer
        except StoreAway:
            self.calls["failed"] += 1
            raise
        finally:
            timer.cancel()
        self.calls["ok"] += 1
        return answer

    def _expire(self, command: _Command, limit_s: float, passes: int) -> None:
        if command.answer.done():
            return
        if passes:
            asyncio.get_running_loop().call_soon(self._expire, command, limit_s, passes - 1)
        else:
            self._fail(f"no answer within {limit_s * 1000:g} ms")

    def _fail(self, reason: str) -> None:
        """Go on without the store, at once."""
        if self.connected:
            logger.warning("the store cannot be used (%s); going on with local values", reason)
        self._leave(reason)

    def _fail_by(self, error: Exception) -> None:
        """The same for an error, which is logged whole if no lost connection explains it."""
        explained = "closed" in str(error) if isinstance(error, RuntimeError) else isinstance(error, _FAILURES)
        if not explained:
            logger.error("unhandled exception in the connection to the store", exc_info=error)
        self._fail(_words(error))

    def _leave(self, reason: str) -> None:
        if self.connected:
            self.state = StoreState(connected=False, reason=reason, since=round(self._wall(), 3))
        elif self.state.reason != reason:
            self.state = msgspec.structs.replace(self.state, reason=reason)
        waiting, self._queue = [*self._sent, *self._queue], deque()
        for command in waiting:
            if not command.answer.done():
                command.answer.set_exception(StoreAway())
        self._broken.set()

    # The connection

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep connected inside, also while that ends after it was cancelled: members leave through the connection."""
        connection = anyio.CancelScope(shield=True)

        async def connect() -> None:
            with connection:
                await self.run()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connect)
            try:
                yield
            finally:
                connection.cancel()

    async def run(self) -> None:
        """Keep connected until cancelled."""
        retry_s = _RETRY_S
        try:
            while True:
                self._broken.clear()
                try:
                    async with self._client(_CONNECT_S) as client, self._client(None) as listening:
                        await self._prove(client)
                        async with listening.pubsub() as messages:
                            if self._channels:
                                with anyio.fail_after(_CONNECT_S * (2 + len(self._address.sentinels))):
                                    await messages.subscribe(*self._channels)
                            began = self._clock()
                            await self._use(client, messages)
                            if self._clock() - began > _MAX_RETRY_S:
                                retry_s = _RETRY_S
                except Exception as error:  # no request depends on the store, and so no gateway
                    self._fail_by(error)
                await anyio.sleep(retry_s)
                retry_s = min(2 * retry_s, _MAX_RETRY_S)
        finally:
            self._leave("the gateway stops")

    async def _use(self, client: Redis, messages: PubSub) -> None:
        """Send commands and pass on messages until either fails."""
        self.state = StoreState(connected=True, reason="", since=round(self._wall(), 3))
        logger.info("the store is connected")
        for listener in self._on_connect:
            listener()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send, client)
            if self._channels:
                tasks.start_soon(self._listen, messages)
            await self._broken.wait()
            tasks.cancel_scope.cancel()

    async def _prove(self, client: Redis) -> None:
        """Load the scripts, and see whether writes succeed in time."""
        for script in self._scripts:
            script.sha = await client.script_load(script.source)
        for _ in range(_PROOFS):
            before = self._clock()
            await client.set(f"{self.prefix}proof", b"", px=1000)
            took_s = self._clock() - before
            if took_s > REQUEST_LIMIT_S:
                raise TimeoutError(f"an answer took {took_s * 1000:.0f} ms")

    async def _send(self, client: Redis) -> None:
        try:
            while True:
                while not self._queue:
                    self._wake.clear()
                    await self._wake.wait()
                self._sent, self._queue = tuple(self._queue), deque()
                pipeline = client.pipeline(transaction=False)
                for command in self._sent:
                    pipeline.execute_command(*command.words)
                answers = await pipeline.execute(raise_on_error=False)
                failure: Exception | None = None
                for command, answer in zip(self._sent, answers, strict=True):
                    if isinstance(answer, Exception) and "WRONGTYPE" in str(answer):
                        await self._remove_others(client, command)
                        if not command.answer.done():
                            command.answer.set_exception(StoreAway())
                    elif isinstance(answer, Exception):
                        failure = answer
                    elif not command.answer.done():
                        command.answer.set_result(answer)
                if failure is not None:
                    raise failure
                self._sent = ()
        except _FAILURES as error:
            self._fail_by(error)

    async def _remove_others(self, client: Redis, command: _Command) -> None:
        """Remove what has a wrong type at the places of a command, and have everyone write anew what may be lost."""
        removed = False
        for key, expected in command.types:
            answer: Any = await client.type(key)
            found = answer.decode()
            if found not in (expected, "none"):
                await client.delete(key)
                removed = True
                logger.warning(
                    "%s in the store was overwritten: a %s instead of a %s; it is removed", key, found, expected
                )
        for listener in self._on_connect if removed else ():
            listener()

    async def _listen(self, messages: PubSub) -> None:
        try:
            while (message := await messages.get_message(timeout=_SILENCE_S)) is not None:
                if message["type"] != "message":
                    continue  # the channel's own confirmation
                try:
                    self._channels[message["channel"]](message["data"])
                except Exception:
                    logger.exception("unhandled exception in a listener of %s", message["channel"])
            self._fail("its messages do not arrive")
        except _FAILURES as error:
            self._fail_by(error)

    @asynccontextmanager
    async def _client(self, timeout_s: float | None) -> AsyncIterator[Redis]:
        """A client with connections of its own, which are looked up anew: after a failover the store may be elsewhere."""
        options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": _CONNECT_S,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        address, sentinel = self._address, None
        if address.url is not None:
            client = Redis.from_url(address.url, **options)
        else:
            if address.tls:
                options |= {"ssl": True} | ({"ssl_ca_certs": address.ca_file} if address.ca_file else {})
            account = {"username": address.sentinel_username, "password": address.sentinel_password}
            make: Any = Sentinel  # its signature has no types
            sentinel = make(address.sentinels, sentinel_kwargs={**options, **account, "socket_timeout": _CONNECT_S})
            account = {"username": address.username, "password": address.password}
            client = sentinel.master_for(address.service, db=address.database, **account, **options)
        try:
            yield client
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_CONNECT_S):
                await client.aclose()
                await client.connection_pool.disconnect()
                for each in sentinel.sentinels if sentinel is not None else ():
                    await each.aclose()


def _words(error: Exception) -> str:
    """An error of the library as one short line."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]
