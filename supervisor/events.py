"""Subscriptions to a host's events, and streaming responses. A slow client never delays the host."""

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

from hostler.adapters import sse
from hostler.supervisor.contract import Snapshot, SupervisorEvent

Emit = Callable[[str, msgspec.Struct], Awaitable[None]]

PING_S = 10.0
SEND_TIMEOUT_S = 30.0
LOG_BUFFER = 1000

logger = logging.getLogger(__name__)


class EventStreamResponse(EventSourceResponse):
    """Server-sent events that `produce` emits. It is cancelled when the client disconnects or the server stops."""

    def __init__(self, produce: Callable[[Emit], Awaitable[None]], stopping: anyio.Event) -> None:
        sender, receiver = anyio.create_memory_object_stream[bytes](0)

        async def emit(name: str, value: msgspec.Struct) -> None:
            await sender.send(sse.event(msgspec.json.encode(value), name))

        async def send() -> None:
            async with sender:
                await run_until(stopping, lambda: produce(emit))

        super().__init__(
            receiver,
            sep="\n",
            ping=PING_S,
            ping_message_factory=lambda: ServerSentEvent(comment="", sep="\n"),
            data_sender_callable=send,
            send_timeout=SEND_TIMEOUT_S,
        )
        self._streams = (sender, receiver)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("%s: client stopped reading, connection closed", scope["path"])
        finally:
            for stream in self._streams:
                stream.close()


class LineStreamResponse(Response):
    """Lines of text as they come. A client that reads too slowly loses the oldest and gets their number."""

    media_type = "text/plain; charset=utf-8"

    def __init__(self, lines: AsyncIterator[str], stopping: anyio.Event) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._lines = lines
        self._stopping = stopping
        self._buffer: deque[str] = deque(maxlen=LOG_BUFFER)
        self._lost = 0
        self._ended = False
        self._changed = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def wait_disconnect() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        whole = scope["method"] == "HEAD"
        if not whole:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait_disconnect)
                tasks.start_soon(run_until, self._stopping, self._collect)
                whole = await self._pass_on(send)
                tasks.cancel_scope.cancel()
        if whole:
            await send({"type": "http.response.body", "body": b""})

    async def _pass_on(self, send: Send) -> bool:
        """Send lines until there are no more; `False` when the client has stopped reading."""
        while self._buffer or not self._ended:
            if not self._buffer:
                await self._changed.wait()
            self._changed = anyio.Event()
            if not await self._write(send):
                return False
        return True

    async def _collect(self) -> None:
        """Buffer lines as fast as they come: their producer never waits for the client."""
        try:
            async for line in self._lines:
                if len(self._buffer) == LOG_BUFFER:
                    self._lost += 1
                self._buffer.append(line)
                self._changed.set()
        except Exception:
            logger.exception("reading log lines failed")
        finally:
            self._ended = True
            self._changed.set()

    async def _write(self, send: Send) -> bool:
        lines, lost = list(self._buffer), self._lost
        self._buffer.clear()
        self._lost = 0
        notice = [f"[{lost} lines lost: this client reads too slowly]"] if lost else []
        text = "".join(f"{line}\n" for line in notice + lines)
        if not text:
            return True
        with anyio.move_on_after(SEND_TIMEOUT_S):
            await send({"type": "http.response.body", "body": text.encode(errors="replace"), "more_body": True})
            return True
        return False


async def run_until(stopping: anyio.Event, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` to its end or up to `stopping`. Its exception is raised as it is, not in a group."""
    error: Exception | None = None

    async def stop() -> None:
        await stopping.wait()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop)
        try:
            await work()
        except Exception as raised:
            error = raised
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error


#: Events buffered for one subscriber; a slower one gets a new snapshot instead of them.
MAX_BUFFERED_EVENTS: Final = 256


class Subscriptions:
    """All subscribers of one host. `snapshot` returns its current state."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._subscribers: set[_Subscription] = set()
        self._listeners: list[Callable[[SupervisorEvent], None]] = []

    def __len__(self) -> int:
        return len(self._subscribers)

    def publish(self, event: SupervisorEvent) -> None:
        """Pass an event to all listeners and subscribers without waiting."""
        for listener in self._listeners:
            listener(event)
        for subscriber in self._subscribers:
            subscriber.offer(event)

    def add_listener(self, listener: Callable[[SupervisorEvent], None]) -> None:
        """Call `listener` with every event from now on. It must be quick and must not raise."""
        self._listeners.append(listener)

    @contextmanager
    def open(self) -> Iterator[AsyncIterator[SupervisorEvent]]:
        """Subscribe for as long as the context lasts. The first event is a snapshot."""
        subscriber = _Subscription(self._snapshot)
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)


class _Subscription:
    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._buffer: deque[SupervisorEvent] = deque()
        self._behind = True
        self._changed = anyio.Event()

    def offer(self, event: SupervisorEvent) -> None:
        if not self._behind:
            self._buffer.append(event)
            if len(self._buffer) > MAX_BUFFERED_EVENTS:
                self._buffer.clear()
                self._behind = True
        self._changed.set()

    def __aiter__(self) -> _Subscription:
        return self

    async def __anext__(self) -> SupervisorEvent:
        while not self._behind and not self._buffer:
            self._changed = anyio.Event()
            await self._changed.wait()
        if self._behind:
            self._behind = False
            return self._snapshot()
        return self._buffer.popleft()
