"""`GET /admin/logs`: the logs of the gateway and of engines as event streams. Writing a log never waits for a reader."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping

import anyio
from starlette.requests import Request

from hostler.adapters import sse
from hostler.adapters.errors import GatewayError, NotFound
from hostler.gateway.admin.http import error_response
from hostler.gateway.asgi import ASGIApp, Message, Receive, RouteMatch, Scope, Send
from hostler.gateway.routing import gateway_route
from hostler.gateway.telemetry.event_stream import frame
from hostler.gateway.telemetry.log_buffer import LogBuffer, LogLine

#: `read(model, follow)`: the buffered lines of a model's engine, and with `follow` new ones.
ReadEngineLog = Callable[[str, bool], AsyncIterator[str]]

#: Lines buffered for one reader; a slower one receives the number of lines it missed.
_MAX_BUFFERED = 2000
_PACE_S = 0.1
_PING_S = 15.0


class LogRoutes:
    """The gateway's log, or with `backend` and `model` that of an engine. With `follow=0` only the buffered lines."""

    def __init__(self, buffer: LogBuffer, engines: Callable[[], Mapping[str, ReadEngineLog]]) -> None:
        self._buffer = buffer
        self._engines = engines
        self._closed = anyio.Event()

    def routes(self) -> list[RouteMatch]:
        return [gateway_route("logs", "/admin/logs", _with_json_errors(self._answer), scope="read")]

    def close(self) -> None:
        """End every stream."""
        self._closed.set()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = Request(scope).query_params
        backend, model = query.get("backend", ""), query.get("model", "")
        follow = query.get("follow", "1").lower() not in ("0", "false", "no")
        if not backend and not model:
            lines = self._own(follow)
        elif (read := (engines := self._engines()).get(backend)) is not None:
            lines = self._engine(read, model, follow)
        else:
            raise NotFound(f"no engine logs on that backend; backends with logs: {', '.join(engines) or 'none'}")
        await _LogStream(lines, self._closed, ends=not follow).run(receive, send)

    async def _own(self, follow: bool) -> AsyncIterator[LogLine]:
        with self._buffer.follow() as fresh:
            for line in self._buffer.tail():
                yield line
            if follow:
                async for line in fresh:
                    yield line

    async def _engine(self, read: ReadEngineLog, model: str, follow: bool) -> AsyncIterator[LogLine]:
        try:
            async for text in read(model, follow):
                yield LogLine(text=text)
        except GatewayError as error:
            yield LogLine(text=error.message, level="error")
        except Exception as error:
            # The supervisor is unreachable, or has no such model: shown in place of the log.
            yield LogLine(text=f"log interrupted: {type(error).__name__}: {error}", level="error")


class _LogStream:
    """One reader of a log. Lines that arrive within `_PACE_S` are sent together."""

    def __init__(self, lines: AsyncIterator[LogLine], closed: anyio.Event, *, ends: bool) -> None:
        self._lines = lines
        self._closed = closed
        self._waiting: deque[LogLine] = deque()
        self._missed = 0
        self._ends = ends
        self._over = False
        self._more = anyio.Event()

    async def run(self, receive: Receive, send: Send) -> None:
        """Send until the client disconnects or the gateway stops."""
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        async with anyio.create_task_group() as tasks:

            async def stop_after(over: Callable[[], object]) -> None:
                await over()  # type: ignore[misc]  # both are coroutine functions
                tasks.cancel_scope.cancel()

            async def disconnected() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass

            tasks.start_soon(stop_after, disconnected)
            tasks.start_soon(stop_after, self._closed.wait)
            tasks.start_soon(self._collect)
            while self._waiting or not self._over:
                with anyio.move_on_after(_PING_S):
                    await self._more.wait()
                await send(self._next_chunk())
                if not self._over:
                    await anyio.sleep(_PACE_S)
            tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _collect(self) -> None:
        async for line in self._lines:
            if len(self._waiting) == _MAX_BUFFERED:
                self._waiting.popleft()
                self._missed += 1
            self._waiting.append(line)
            self._more.set()
        if self._ends:
            self._over = True
            self._more.set()

    def _next_chunk(self) -> Message:
        self._more = anyio.Event()
        lines = list(self._waiting)
        self._waiting.clear()
        if self._missed:
            lines.insert(0, LogLine(text=f"[{self._missed} lines skipped]", level="warning"))
            self._missed = 0
        data = frame("lines", lines) if lines else sse.comment("ping")
        return {"type": "http.response.body", "body": data, "more_body": True}


_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def _with_json_errors(app: ASGIApp) -> ASGIApp:
    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except GatewayError as error:
            await error_response(error)(scope, receive, send)

    return guarded
