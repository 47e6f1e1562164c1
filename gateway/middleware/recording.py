"""Takes down what a client asks and is answered, while it goes over the line. In use only where that is switched on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from hostler.adapters.types import ModelInfoRequest
from hostler.gateway.asgi import CONTEXT_KEY, LINE_KEY, ASGIApp, Line, Receive, Scope, Send
from hostler.gateway.context import RequestContext
from hostler.gateway.telemetry.transcripts import Recorded

#: As much is kept of a request, and of its answer, in bytes.
_LONGEST = 1024**2


class RecordingMiddleware:
    """Stands around the edge; `keep` is given every request with its answer when it has ended, however it did."""

    def __init__(
        self, app: ASGIApp, keep: Callable[[Recorded], None], *, wall: Callable[[], float] = time.time
    ) -> None:
        self._app = app
        self._keep = keep
        self._wall = wall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tape = _Tape(scope[LINE_KEY])
        line: Line = tape  # the type checker sees to it that the tape does whatever a line does
        scope[LINE_KEY] = line
        try:
            await self._app(scope, receive, send)
        finally:
            context: RequestContext | None = scope.get(CONTEXT_KEY)
            if context is not None and not isinstance(context.request, ModelInfoRequest):
                body = context.request.origin.body
                said = {"request": len(body) > _LONGEST, "answer": tape.full}
                self._keep(
                    Recorded(
                        id=context.id,
                        at=self._wall(),
                        request=body[:_LONGEST].decode("utf-8", "replace"),
                        answer=bytes(tape.heard).decode("utf-8", "replace"),
                        cut=tuple(name for name, cut in said.items() if cut),
                    )
                )


class _Tape:
    """The client's line, which also keeps the beginning of what is written to it."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.heard = bytearray()
        self.full = False

    @property
    def task(self) -> asyncio.Task[None]:
        """See `Line.task`."""
        return self._line.task

    @property
    def paused(self) -> bool:
        """See `Line.paused`."""
        return self._line.paused

    async def writable(self) -> None:
        """See `Line.writable`."""
        await self._line.writable()

    def begin(self, status: int, lines: Sequence[bytes], *, length: int | None, closes: bool = False) -> None:
        """See `Line.begin`."""
        self._line.begin(status, lines, length=length, closes=closes)

    def put(self, body: bytes, more: bool) -> None:
        """See `Line.put`."""
        self.heard += body[: _LONGEST - len(self.heard)]
        self.full = self.full or len(self.heard) == _LONGEST
        self._line.put(body, more)

    def whole_body(self) -> bytes | None:
        """See `Line.whole_body`."""
        return self._line.whole_body()

    def on_leaving(self, callback: Callable[[], None] | None) -> None:
        """See `Line.on_leaving`."""
        self._line.on_leaving(callback)
