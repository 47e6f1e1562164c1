"""Records requests and answers. Present only if recording is on."""

from __future__ import annotations

import time
from collections.abc import Callable

from hostler.adapters.canonical import ModelInfoRequest, StoredRequest
from hostler.gateway.asgi import CONTEXT_KEY, ASGIApp, Message, Receive, Scope, Send
from hostler.gateway.context import RequestContext
from hostler.gateway.telemetry.transcripts import Transcript

#: Bytes recorded of a request, and of its answer.
_MAX_BYTES = 1024**2


class RecordingMiddleware:
    """`keep` receives every request for a model with its answer, however it ended."""

    def __init__(
        self, app: ASGIApp, keep: Callable[[Transcript], None], *, wall: Callable[[], float] = time.time
    ) -> None:
        self.app = app
        self._keep = keep
        self._wall = wall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = bytearray()

        async def recording(message: Message) -> None:
            if message["type"] == "http.response.body":
                answer.extend(message.get("body", b"")[: _MAX_BYTES - len(answer)])
            await send(message)

        try:
            await self.app(scope, receive, recording)
        finally:
            context: RequestContext | None = scope.get(CONTEXT_KEY)
            if context is not None and not isinstance(context.request, (ModelInfoRequest, StoredRequest)):
                self._keep(self._transcript(context, answer))

    def _transcript(self, context: RequestContext, answer: bytearray) -> Transcript:
        body = context.request.origin.body
        truncated = {"request": len(body) > _MAX_BYTES, "answer": len(answer) == _MAX_BYTES}
        return Transcript(
            id=context.id,
            at=self._wall(),
            request=body[:_MAX_BYTES].decode("utf-8", "replace"),
            answer=answer.decode("utf-8", "replace"),
            truncated=tuple(name for name, is_truncated in truncated.items() if is_truncated),
        )
