"""Answers that go on: server-sent events, and lines of a log. A client that does not keep up holds up nobody."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio
import msgspec
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hostler.supervisor.contract import Snapshot, SupervisorEvent

Emit = Callable[[str, msgspec.Struct], Awaitable[None]]

PING_S = 10.0
SEND_TIMEOUT_S = 30.0
LOG_BUFFER = 1000

logger = logging.getLogger(__name__)


class EventStreamResponse(EventSourceResponse):
    """Server-sent events told by a coroutine, which is cancelled when the client leaves or the server stops."""

    def __init__(self, narrate: Callable[[Emit], Awaitable[None]], stopping: anyio.Event) -> None:
        sender, receiver = anyio.create_memory_object_stream[ServerSentEvent](0)

        async def emit(name: str, value: msgspec.Struct) -> None:
            await sender.send(ServerSentEvent(msgspec.json.encode(value).decode(), event=name, sep="\n"))

        async def produce() -> None:
            async with sender:
                await run_until(stopping, lambda: narrate(emit))

        super().__init__(
            receiver,
            sep="\n",
            ping=PING_S,
            ping_message_factory=lambda: ServerSentEvent(comment="", sep="\n"),
            data_sender_callable=produce,
            send_timeout=SEND_TIMEOUT_S,
        )
        self._streams = (sender, receiver)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("a client stopped reading %s and was left", scope["path"])
        finally:
            for stream in self._streams:
                stream.close()


class LineStreamResponse(Response):
    """Lines of text as they come. A client that reads too slowly loses the oldest and is told how many."""

    media_type = "text/plain; charset=utf-8"

    def __init__(self, lines: AsyncIterator[str], stopping: anyio.Event) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._lines = lines
        self._stopping = stopping
        self._kept: deque[str] = deque(maxlen=LOG_BUFFER)
        self._lost = 0
        self._over = False
        self._news = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        whole = scope["method"] == "HEAD"
        if not whole:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(leave)
                tasks.start_soon(run_until, self._stopping, self._collect)
                whole = await self._pass_on(send)
                tasks.cancel_scope.cancel()
        if whole:
            await send({"type": "http.response.body", "body": b""})

    async def _pass_on(self, send: Send) -> bool:
        """Send lines until there are no more; `False` when the client has stopped reading."""
        while self._kept or not self._over:
            if not self._kept:
                await self._news.wait()
            self._news = anyio.Event()
            if not await self._write(send):
                return False
        return True

    async def _collect(self) -> None:
        """Take lines as fast as they come: whoever produces them never waits for the client."""
        try:
            async for line in self._lines:
                if len(self._kept) == LOG_BUFFER:
                    self._lost += 1
                self._kept.append(line)
                self._news.set()
        except Exception:
            logger.exception("the log lines of a model ended early")
        finally:
            self._over = True
            self._news.set()

    async def _write(self, send: Send) -> bool:
        lines, lost = list(self._kept), self._lost
        self._kept.clear()
        self._lost = 0
        note = [f"[{lost} lines lost: this reader was too slow]"] if lost else []
        text = "".join(f"{line}\n" for line in note + lines)
        if not text:
            return True
        with anyio.move_on_after(SEND_TIMEOUT_S):
            await send({"type": "http.response.body", "body": text.encode(errors="replace"), "more_body": True})
            return True
        return False


async def run_until(stopping: anyio.Event, do: Callable[[], Awaitable[None]]) -> None:
    """Run `do` to its end or up to `stopping`. What it raises comes out as itself, not in a group."""
    error: Exception | None = None

    async def stop() -> None:
        await stopping.wait()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop)
        try:
            await do()
        except Exception as raised:
            error = raised
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error


#: Events that wait for one listener; one that is slower gets a fresh snapshot instead of them.
WAITING_EVENTS: Final = 256


class Subscriptions:
    """All listeners of one host. `snapshot` says how everything is now."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._listeners: set[_Subscription] = set()
        self._taps: list[Callable[[SupervisorEvent], None]] = []

    def __len__(self) -> int:
        return len(self._listeners)

    def publish(self, event: SupervisorEvent) -> None:
        """Hand an event to everybody; never waits, never fails."""
        for tap in self._taps:
            tap(event)
        for listener in self._listeners:
            listener.offer(event)

    def tap(self, listener: Callable[[SupervisorEvent], None]) -> None:
        """Call `listener` with every single event from now on. It must be quick, and must not fail."""
        self._taps.append(listener)

    @contextmanager
    def open(self) -> Iterator[AsyncIterator[SupervisorEvent]]:
        """One more listener, as long as the context lasts. Its first event is a snapshot."""
        listener = _Subscription(self._snapshot)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)


class _Subscription:
    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._waiting: deque[SupervisorEvent] = deque()
        self._behind = True
        self._more = anyio.Event()

    def offer(self, event: SupervisorEvent) -> None:
        if not self._behind:
            self._waiting.append(event)
            if len(self._waiting) > WAITING_EVENTS:
                self._waiting.clear()
                self._behind = True
        self._more.set()

    def __aiter__(self) -> _Subscription:
        return self

    async def __anext__(self) -> SupervisorEvent:
        while not self._behind and not self._waiting:
            self._more = anyio.Event()
            await self._more.wait()
        if self._behind:
            self._behind = False
            return self._snapshot()
        return self._waiting.popleft()
