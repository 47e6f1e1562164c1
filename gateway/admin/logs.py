"""The logs of the gateway and of engines as streams that people follow. Nobody who writes a log ever waits for a reader."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping

import anyio
from starlette.requests import Request

from hostler.adapters.errors import GatewayError, NotFound
from hostler.gateway.admin.http import json_response
from hostler.gateway.asgi import ASGIApp, Message, Receive, RouteMatch, Scope, Send
from hostler.gateway.routing import gateway_route
from hostler.gateway.telemetry.event_stream import frame
from hostler.gateway.telemetry.log_buffer import LogBuffer, LogLine

#: `log(model, follow)`: the lines that are kept of a model's engines, and with `follow` those to come.
ReadLog = Callable[[str, bool], AsyncIterator[str]]

#: Lines that wait for one reader; a slower one is told how many it missed.
_MOST_WAITING = 2000
_PACE_S = 0.1
_PING_S = 15.0


class Logs:
    """Answers `GET /admin/logs`: the gateway's own, or with `backend` and `model` those of engines there.

    With `follow=0` the stream ends after the lines that are kept.
    """

    def __init__(self, logbook: LogBuffer, engines: Mapping[str, ReadLog]) -> None:
        self._logbook = logbook
        self._engines = engines
        self._closed = anyio.Event()

    def claims(self) -> list[RouteMatch]:
        """The route."""
        return [gateway_route("logs", "/admin/logs", _caught(self._answer), scope="read")]

    def close(self) -> None:
        """End every stream."""
        self._closed.set()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = Request(scope).query_params
        backend, model = query.get("backend", ""), query.get("model", "")
        follow = query.get("follow", "1").lower() not in ("0", "false", "no")
        if not backend and not model:
            lines = self._own(follow)
        elif backend in self._engines:
            lines = self._engine(backend, model, follow)
        else:
            raise NotFound(f"no log of engines on that backend; there are: {', '.join(self._engines) or 'none'}")
        await _Stream(lines, self._closed, ends=not follow).run(receive, send)

    async def _own(self, follow: bool) -> AsyncIterator[LogLine]:
        with self._logbook.followed() as fresh:
            for line in self._logbook.tail():
                yield line
            if follow:
                async for line in fresh:
                    yield line

    async def _engine(self, backend: str, model: str, follow: bool) -> AsyncIterator[LogLine]:
        try:
            async for text in self._engines[backend](model, follow):
                yield LogLine(text=text)
        except GatewayError as error:
            yield LogLine(text=error.message, level="error")
        except Exception as error:
            # A supervisor that is gone, or a model that is not there: whoever looks at logs wants to know.
            yield LogLine(text=f"the log ends here: {type(error).__name__}: {error}", level="error")


class _Stream:
    """One reader: what comes is collected for a moment and sent together. A log that is followed has no end."""

    def __init__(self, lines: AsyncIterator[LogLine], closed: anyio.Event, *, ends: bool) -> None:
        self._lines = lines
        self._closed = closed
        self._waiting: deque[LogLine] = deque()
        self._missed = 0
        self._ends = ends
        self._over = False
        self._more = anyio.Event()

    async def run(self, receive: Receive, send: Send) -> None:
        """Until the reader leaves or the gateway stops."""
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        async with anyio.create_task_group() as tasks:

            async def leave(over: Callable[[], object]) -> None:
                await over()  # type: ignore[misc]  # both are coroutine functions
                tasks.cancel_scope.cancel()

            async def gone() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass

            tasks.start_soon(leave, gone)
            tasks.start_soon(leave, self._closed.wait)
            tasks.start_soon(self._collect)
            while self._waiting or not self._over:
                with anyio.move_on_after(_PING_S):
                    await self._more.wait()
                await send(self._piece())
                if not self._over:
                    await anyio.sleep(_PACE_S)
            tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _collect(self) -> None:
        async for line in self._lines:
            if len(self._waiting) == _MOST_WAITING:
                self._waiting.popleft()
                self._missed += 1
            self._waiting.append(line)
            self._more.set()
        if self._ends:
            self._over = True
            self._more.set()

    def _piece(self) -> Message:
        self._more = anyio.Event()
        lines = list(self._waiting)
        self._waiting.clear()
        if self._missed:
            lines.insert(0, LogLine(text=f"[{self._missed} lines were missed]", level="warning"))
            self._missed = 0
        data = frame("lines", lines) if lines else b": still here\n\n"
        return {"type": "http.response.body", "body": data, "more_body": True}


_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def _caught(app: ASGIApp) -> ASGIApp:
    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except GatewayError as error:
            answer = json_response({"error": {"message": error.message, "code": error.code}}, status=error.status)
            await answer(scope, receive, send)

    return guarded
