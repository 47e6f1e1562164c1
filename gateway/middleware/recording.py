"""Records what a client asks and is answered. In use only where that is switched on."""

from __future__ import annotations

import time
from collections.abc import Callable

from hostler.adapters.types import ModelInfoRequest
from hostler.gateway.asgi import CONTEXT_KEY, ASGIApp, Message, Receive, Scope, Send
from hostler.gateway.context import RequestContext
from hostler.gateway.telemetry.transcripts import Recorded

#: As much is kept of a request, and of its answer, in bytes.
_LONGEST = 1024**2


class RecordingMiddleware:
    """`keep` is given every request of a model with its answer when it has ended, however it did."""

    def __init__(
        self, app: ASGIApp, keep: Callable[[Recorded], None], *, wall: Callable[[], float] = time.time
    ) -> None:
        self.app = app
        self._keep = keep
        self._wall = wall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = bytearray()

        async def recording(message: Message) -> None:
            if message["type"] == "http.response.body":
                answer.extend(message.get("body", b"")[: _LONGEST - len(answer)])
            await send(message)

        try:
            await self.app(scope, receive, recording)
        finally:
            context: RequestContext | None = scope.get(CONTEXT_KEY)
            if context is not None and not isinstance(context.request, ModelInfoRequest):
                self._keep(self._recorded(context, answer))

    def _recorded(self, context: RequestContext, answer: bytearray) -> Recorded:
        body = context.request.origin.body
        cut = {"request": len(body) > _LONGEST, "answer": len(answer) == _LONGEST}
        return Recorded(
            id=context.id,
            at=self._wall(),
            request=body[:_LONGEST].decode("utf-8", "replace"),
            answer=answer.decode("utf-8", "replace"),
            cut=tuple(name for name, is_cut in cut.items() if is_cut),
        )
