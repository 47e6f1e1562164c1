"""Requests about streams that outlive their client's connection: follow one from an offset, stop one, find some."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import aclosing

from hostler.adapters.canonical import StoredRequest
from hostler.adapters.errors import BadRequest, NotFound
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.base import CallNext, RequestMiddleware
from hostler.gateway.stream_store import OffsetLost, StreamStore


class ResumableStreamsMiddleware(RequestMiddleware):
    """Answers requests of `kind` `follow`, `stop` and `lookup`. `store` is `None` while no streams are kept."""

    def __init__(self, app: ASGIApp, *, store: StreamStore | None) -> None:
        super().__init__(app)
        self._store = store

    def dispatch(self, context: RequestContext, call_next: CallNext) -> Awaitable[None]:
        request = context.request
        if not isinstance(request, StoredRequest):
            return call_next()
        return self._follow(context, request) if request.kind == "follow" else self._answer(context, request)

    async def _answer(self, context: RequestContext, request: StoredRequest) -> None:
        store, client = self._store, context.client
        found = store.matching(client, request.ids) if store is not None else []
        if request.kind == "stop" and store is not None and (stream := store.find(client, request.id)) is not None:
            store.forget(stream)
            stream.cancel()
        await context.writer.respond(context.adapter.stream_info(request, found))

    async def _follow(self, context: RequestContext, request: StoredRequest) -> None:
        stream = self._store.find(context.client, request.id) if self._store is not None else None
        if stream is None:
            raise NotFound("Stream not found or expired")
        if request.start < stream.dropped:
            raise BadRequest("Stream offset lost, please restart", param="from")
        writer = context.writer
        media_type = stream.media_type or "text/event-stream"
        await writer.write_event(b"", media_type=media_type, last=request.origin.method == "HEAD")
        if writer.ended:
            return
        async with aclosing(stream.follow(request.start)) as pieces:
            try:
                async for piece in pieces:
                    await writer.write_event(piece)
            except OffsetLost:
                raise BadRequest("Stream offset lost, please restart", param="from") from None
        await writer.write_event(b"", last=True)
