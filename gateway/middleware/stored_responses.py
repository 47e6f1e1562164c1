"""Stored responses: requests may refer to earlier ones whatever backend answered them, read and delete them."""

from __future__ import annotations

from collections.abc import Awaitable

from hostler.adapters.canonical import StoredRequest
from hostler.adapters.errors import NotFound
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.base import CallNext, RequestMiddleware
from hostler.gateway.response_store import ResponseStore


class StoredResponsesMiddleware(RequestMiddleware):
    """Puts stored items in the place of references, and stores what is answered. Only around routes that need it.

    `store` is `None` while nothing is stored. `pass_on`: some backend may have stored what this gateway has not.
    """

    def __init__(self, app: ASGIApp, *, store: ResponseStore | None, pass_on: bool) -> None:
        super().__init__(app)
        self._store = store
        self._pass_on = pass_on

    def dispatch(self, context: RequestContext, call_next: CallNext) -> Awaitable[None]:
        request, adapter, store = context.request, context.adapter, self._store
        if isinstance(request, StoredRequest):
            return self._answer(context, request)
        if store is None:
            return call_next()
        stored, client = store.of(context.client.name), context.client.name
        context.request = adapter.with_stored(request, stored, pass_on=self._pass_on)
        if adapter.wants_stored(request):

            def keep(body: bytes) -> None:
                response = adapter.stored_response(request, body, store.wall(), stored)
                if response is not None:
                    store.add(client, response)

            context.writer.encoder.on_response = keep
        return call_next()

    async def _answer(self, context: RequestContext, request: StoredRequest) -> None:
        if self._store is None:
            raise NotFound("no responses are stored here (gateway.responses.store)")
        client = context.client.name
        answer = context.adapter.stored_info(request, self._store.of(client))
        if request.origin.method == "DELETE":
            self._store.delete(client, request.id)
        await context.writer.respond(answer)
