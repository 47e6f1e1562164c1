"""From bytes to a request context and back out: the body, the protocol's decoding, errors, and disconnects."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import anyio
import msgspec

from hostler.adapters.base import Adapter, Encoder, Incoming, Operation
from hostler.adapters.canonical import ModelInfoRequest, Request, StoredRequest
from hostler.adapters.errors import (
    ClientDisconnected,
    Forbidden,
    GatewayError,
    RequestCancelled,
    ShuttingDown,
    UpgradeRequired,
    drop_tracebacks,
)
from hostler.gateway.asgi import (
    BACKGROUND_KEY,
    CLIENT_KEY,
    CONTEXT_KEY,
    DISCONNECT,
    HEAD,
    ROUTE_KEY,
    UPGRADE,
    UPGRADE_HEADER,
    AcceptUpgrade,
    ASGIApp,
    Receive,
    RouteMatch,
    Scope,
    Send,
)
from hostler.gateway.context import DRAIN_EXPIRED, Client, RequestContext
from hostler.gateway.gateway_settings import SwitchingSettings
from hostler.gateway.heartbeat import Heartbeat
from hostler.gateway.request_body import codings, decompress, too_large, without_mark
from hostler.gateway.response import ResponseWriter
from hostler.gateway.serving_headers import ServingHeaders
from hostler.gateway.stream_store import CONVERSATION, MAX_NAME, ResumableStream, StreamStore

logger = logging.getLogger(__name__)

#: Time for the error that a stopping gateway sends, in seconds: clients that read nothing are not waited for.
_LAST_ERROR_S = 1.0

#: Bodies from this size on, in bytes, are decoded in a thread.
_LARGE = 256 * 1024

#: Request ids generated at a time.
_IDS_AT_ONCE = 256

_NO_EXTENSIONS: dict[str, Any] = {}

#: What is answered 426 to clients that ask for WebSocket, so that they use plain HTTP at once.
_NO_ROUTE = frozenset({404, 405})

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class InFlightRequests:
    """The requests in flight by id, each with a function that cancels it. Clients may choose ids, so two can share one."""

    def __init__(self) -> None:
        self._ends: dict[str, list[tuple[RequestContext, Callable[[], None]]]] = {}

    def enter(self, context: RequestContext, end: Callable[[], None]) -> None:
        """Add a request; `end` cancels it."""
        entries = self._ends.get(context.id)
        if entries is None:
            self._ends[context.id] = [(context, end)]
        else:
            entries.append((context, end))

    def leave(self, context: RequestContext) -> None:
        entries = self._ends.pop(context.id)
        if len(entries) > 1:
            self._ends[context.id] = [entry for entry in entries if entry[0] is not context]

    def contexts(self) -> Iterator[RequestContext]:
        """All requests, the oldest first if ids are distinct."""
        for entries in self._ends.values():
            for context, _ in entries:
                yield context

    def cancel(self, request_id: str) -> int:
        """Cancel the requests with this id; returns their number."""
        entries = list(self._ends.get(request_id, ()))
        for _, end in entries:
            end()
        return len(entries)


class RequestContextMiddleware:
    """The only reader of the client, and the only place where errors become answers. A client that asked for a stream gets
    signs of life from here until its first token.

    A request is cancelled as soon as its client disconnects, unless it is a stream that names its conversation, which
    `streams` keeps. Any other cancellation is the end of the drain time, which the client gets as an error.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body: int,
        switching: SwitchingSettings,
        in_progress: InFlightRequests,
        clock: Callable[[], float],
        streams: StreamStore | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.app = app
        self._max_body = max_body
        self._switching = switching
        self._in_progress = in_progress
        self._clock = clock
        self._streams = streams
        self._wall = wall
        self._ids: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = self._clock()
        route: RouteMatch = scope[ROUTE_KEY]
        adapter, operation = route.adapter, route.operation
        assert adapter is not None, "the gateway's own routes have no request context"
        client: Client = scope[CLIENT_KEY]
        head = _head(scope)
        headers = head.headers
        request_id = head.request_id or (self._ids.pop() if self._ids else self._new_id())
        body: bytes | None = None
        facts = ServingHeaders(request_id)
        writer = ResponseWriter(send, facts)
        heartbeat: Heartbeat | None = None
        stream: ResumableStream | None = None
        try:
            compressed = codings(headers["content-encoding"]) if "content-encoding" in headers else ()
            body = await self._read(receive, headers)
            if compressed:
                body = await decompress(body, compressed, self._max_body)
            body = without_mark(body)
            incoming = Incoming(
                method=scope["method"],
                path=head.path,
                body=body,
                query=head.query,
                path_params=scope["path_params"],
                headers=headers,
            )
            decode = partial(self._decode, adapter, operation, incoming, request_id)
            # Checking a large body takes a while, and other requests are served meanwhile.
            request, encoder = decode() if len(body) < _LARGE else await asyncio.to_thread(decode)
            if encoder is not None:
                writer.use(encoder)
            context = facts.context = RequestContext(
                request_id=request_id,
                adapter=adapter,
                operation=operation,
                request=request,
                writer=writer,
                client=client,
                started_at=started_at,
                local_only=client.local_only or head.local_only,
                only=head.only if head.only is None else _only(head.only, client),
                client_port=peer[1] or 0 if (peer := scope.get("client")) else 0,
                headers=headers,
                accept_upgrade=_accept_upgrade(scope) if UPGRADE_HEADER in headers else None,
                background=scope.get(BACKGROUND_KEY, False),
            )
            scope[CONTEXT_KEY] = context
            if writer.streaming:
                if CONVERSATION in headers:
                    stream = self._resumable(headers[CONVERSATION], client, send, writer)
                heartbeat = self._start_signs(context)
            await self._watched(context, scope, receive, send, stream)
        except ClientDisconnected as error:
            drop_tracebacks(error)
        except asyncio.CancelledError:
            # Neither the client nor an operator: the drain time is over, or the caller of the application gave up.
            stopping = ShuttingDown(DRAIN_EXPIRED)
            with anyio.move_on_after(_LAST_ERROR_S, shield=True):
                await writer.fail(stopping, adapter.error_response(stopping, operation))
            raise
        except GatewayError as error:
            if UPGRADE_HEADER in headers and error.status in _NO_ROUTE:
                error = UpgradeRequired(error.message)
            response = adapter.error_response(error, operation)
            if body is None:
                # Not read to its end: close, or the server would go on reading what may never end.
                response = msgspec.structs.replace(response, headers=(*response.headers, ("Connection", "close")))
            drop_tracebacks(error)
            await writer.fail(error, response)
        except Exception as error:
            logger.exception("%s: unhandled exception", request_id)
            drop_tracebacks(error)
            internal = GatewayError(f"internal error; see {request_id} in the gateway's log")
            await writer.fail(internal, adapter.error_response(internal, operation))
        finally:
            if heartbeat is not None:
                await heartbeat.stop()
            if stream is not None:
                stream.finish()
            facts.context = None  # which refers to the writer, and so to the facts

    def _decode(
        self, adapter: Adapter, operation: Operation, incoming: Incoming, request_id: str
    ) -> tuple[Request, Encoder | None]:
        """The request, and an encoder unless it is answered from the catalog alone."""
        request = adapter.decode(operation, incoming)
        if isinstance(request, (ModelInfoRequest, StoredRequest)):
            return request, None
        progress = self._switching.progress_for.get(adapter.name, self._switching.progress)
        encoder = adapter.encoder(request, response_id=request_id, created=int(self._wall()), progress=progress)
        encoder.set_clock(self._wall)
        return request, encoder

    def _resumable(
        self, conversation: str, client: Client, send: Send, writer: ResponseWriter
    ) -> ResumableStream | None:
        """Have an answer go on if its client disconnects; `None` if it is not kept."""
        if self._streams is None or not 0 < len(conversation) <= MAX_NAME:
            return None
        stream = self._streams.open(client, conversation, send)
        if stream is not None:
            writer.send_through(stream.send)
        return stream

    def _start_signs(self, context: RequestContext) -> Heartbeat:
        context.signs_from = self._clock() + self._switching.progress_after_s
        heartbeat = Heartbeat(context, self._switching, self._clock)
        heartbeat.start()
        return heartbeat

    async def _watched(
        self, context: RequestContext, scope: Scope, receive: Receive, send: Send, stream: ResumableStream | None
    ) -> None:
        """Pass the request on, and cancel it when its client disconnects or an operator cancels it. A `stream` goes on
        without its client."""
        task = asyncio.current_task()
        assert task is not None
        left = ended = done = False

        def leave() -> None:
            nonlocal left
            if stream is not None and stream.detach():
                return
            if not (ended or done or context.writer.ended):
                left = True
                context.cancel_reason = ClientDisconnected("the client disconnected before its answer was complete")
                task.cancel()

        def end(by: str = "an operator") -> None:
            nonlocal ended
            if not (left or ended or done):
                ended = True
                context.cancel_reason = RequestCancelled(f"the request was cancelled by {by}")
                context.reason = f"cancelled by {by}"
                task.cancel()

        if stream is not None:
            stream.cancel = partial(end, "its client")

        extension = scope.get("extensions", _NO_EXTENSIONS).get(DISCONNECT)
        watcher = None
        if extension is not None:
            extension["notify"](leave)
        else:
            watcher = asyncio.create_task(_disconnected(receive, leave))
        self._in_progress.enter(context, end)
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if not (left or ended) or task.uncancel() > 0:
                raise  # the server stops
            if ended and context.cancel_reason is not None:
                raise context.cancel_reason from None
        finally:
            done = True
            self._in_progress.leave(context)
            if watcher is not None:
                watcher.cancel()
                await asyncio.wait((watcher,))

    def _new_id(self) -> str:
        """An id that cannot be guessed. Generated in batches: reading randomness costs as much as the rest."""
        drawn = secrets.token_hex(8 * _IDS_AT_ONCE)
        self._ids = [f"req-{drawn[at : at + 16]}" for at in range(0, len(drawn), 16)]
        return self._ids.pop()

    async def _read(self, receive: Receive, headers: dict[str, str]) -> bytes:
        """The whole body as sent, within the limit. The server ends bodies that stall."""
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_body:
            raise too_large(self._max_body)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("the client disconnected before its request was complete")
            body: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            parts.append(body)
            size += len(body)
            if size > self._max_body:
                raise too_large(self._max_body)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _accept_upgrade(scope: Scope) -> AcceptUpgrade:
    extension = scope.get("extensions", _NO_EXTENSIONS).get(UPGRADE)
    if extension is None:
        raise UpgradeRequired("WebSocket is not spoken here; send plain HTTP requests")
    accept: AcceptUpgrade = extension["accept"]
    return accept


async def _disconnected(receive: Receive, leave: Callable[[], None]) -> None:
    """Call `leave` once the client has disconnected. Only once the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    leave()


class _Head(NamedTuple):
    """What a request's head says, read once for all requests of a connection that repeat it. `length` is the body's."""

    headers: dict[str, str]
    length: bytes
    path: str
    query: str
    request_id: str | None
    local_only: bool
    only: str | None


def _head(scope: Scope) -> _Head:
    known: dict[str, Any] = scope.get("extensions", _NO_EXTENSIONS).get(HEAD, _NO_EXTENSIONS)
    head: _Head | None = known.get("read")
    if head is None:
        head = _read_head(scope)
        if known is not _NO_EXTENSIONS:
            known["read"] = head
    elif head.length != (length := scope["headers"][known["length_at"]][1]):
        headers = {**head.headers, "content-length": length.decode("latin-1")}
        head = known["read"] = head._replace(headers=headers, length=length)
    return head


def _read_head(scope: Scope) -> _Head:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    given = headers.get("x-request-id", "")
    return _Head(
        headers=headers,
        length=headers.get("content-length", "").encode("latin-1"),
        path=_path(scope),
        query=scope["query_string"].decode("latin-1"),
        request_id=given if _REQUEST_ID.fullmatch(given) else None,
        local_only=_is_local_only(scope),
        only=_header_value(headers.get("x-hostler-only", "")),
    )


def _path(scope: Scope) -> str:
    """The path as sent by the client, below the path that the application is mounted at."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    path = raw.decode("latin-1").partition("?")[0]
    root = scope.get("root_path", "")
    return path.removeprefix(root) if root else path


def _header_value(value: str) -> str | None:
    """The value of an `X-Hostler-*` header; `None` if it is empty or means no."""
    value = value.strip()
    return None if value.lower() in ("", "false", "0", "no") else value


def _is_local_only(scope: Scope) -> bool:
    """Whether any of the headers says so: a proxy may add its own to the client's, or spell it with underscores."""
    values = [value for name, value in scope["headers"] if name.replace(b"_", b"-") == b"x-hostler-local-only"]
    return any(_header_value(value.decode("latin-1")) is not None for value in values)


def _only(name: str, client: Client) -> str:
    """The backend named by `X-Hostler-Only`, which requires the scope operate."""
    if "operate" not in client.scopes:
        raise Forbidden("X-Hostler-Only requires a key with the scope operate")
    return name
