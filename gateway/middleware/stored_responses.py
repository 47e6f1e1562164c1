"""Stored responses: requests may refer to earlier ones whatever backend answered them, read and delete them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Collection
from functools import partial

from hostler.adapters.base import Adapter
from hostler.adapters.canonical import Request, StoredRequest
from hostler.adapters.errors import GatewayError, NotFound
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import RequestContext
from hostler.gateway.middleware.base import CallNext, RequestMiddleware
from hostler.gateway.response_store import MissedResponses, ResponsePeers, ResponseStore

#: Bodies from this size on, in bytes, are looked through in a thread.
_LARGE = 256 * 1024


class StoredResponsesMiddleware(RequestMiddleware):
    """Puts stored items in the place of references, and stores what is answered. Only around routes that need it.

    `store` is `None` while nothing is stored. `pass_on`: some backend may have stored what this gateway has not.
    """

    def __init__(self, app: ASGIApp, *, store: ResponseStore | None, pass_on: bool) -> None:
        super().__init__(app)
        self._store = store
        self._pass_on = pass_on

    def dispatch(self, context: RequestContext, call_next: CallNext) -> Awaitable[None]:
        request, store = context.request, self._store
        if isinstance(request, StoredRequest):
            return self._answer(context, request)
        if store is None:
            return call_next()
        if store.peers is not None:
            return self._prepare_shared(context, store, store.peers, call_next)
        if len(request.origin.body) >= _LARGE:
            return self._prepare_large(context, store, call_next)
        self._prepare(context, store)
        return call_next()

    def _prepare(self, context: RequestContext, store: ResponseStore) -> None:
        request, adapter, client = context.request, context.adapter, _owner(context)
        if adapter.wants_stored(request):
            context.writer.encoder.on_response = partial(_keep, store, client, adapter, request)
        context.request = adapter.with_stored(request, store.of(client), pass_on=self._pass_on)

    async def _prepare_large(self, context: RequestContext, store: ResponseStore, call_next: CallNext) -> None:
        """Looking through a large body takes a while, and other requests are served meanwhile."""
        await asyncio.to_thread(self._prepare, context, store)
        await call_next()

    async def _prepare_shared(
        self, context: RequestContext, store: ResponseStore, peers: ResponsePeers, call_next: CallNext
    ) -> None:
        """What is referred to may be at another gateway."""
        large = len(context.request.origin.body) >= _LARGE
        missed = await asyncio.to_thread(self._missed, context, store) if large else self._missed(context, store)
        if missed:
            await peers.fetch(_owner(context), missed)
        if large:
            await asyncio.to_thread(self._prepare, context, store)
        else:
            self._prepare(context, store)
        await call_next()

    def _missed(self, context: RequestContext, store: ResponseStore) -> Collection[str]:
        stored = MissedResponses(store, _owner(context))
        with contextlib.suppress(GatewayError):
            context.adapter.with_stored(context.request, stored, pass_on=self._pass_on)
        return stored.missed

    async def _answer(self, context: RequestContext, request: StoredRequest) -> None:
        if self._store is None:
            raise NotFound("no responses are stored here (gateway.responses.store)")
        client, peers = _owner(context), self._store.peers
        if peers is not None and self._store.find(client, request.id) is None:
            await peers.fetch(client, [request.id])
        answer = context.adapter.stored_info(request, self._store.of(client))
        if request.origin.method == "DELETE":
            self._store.delete(client, request.id)
        await context.writer.respond(answer)


def _owner(context: RequestContext) -> str:
    """Whose responses the client may see: a new key does not inherit those of an earlier one of its name."""
    client = context.client
    return f"{client.name} {client.identity}" if client.identity else client.name


def _keep(store: ResponseStore, client: str, adapter: Adapter, request: Request, body: bytes) -> None:
    """Store the whole response to a request."""
    response = adapter.stored_response(request, body, store.wall(), store.of(client))
    if response is not None:
        store.add(client, response)
