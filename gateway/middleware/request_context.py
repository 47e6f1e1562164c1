"""From bytes to an exchange and back out: the body, the protocol's decoding, errors, and the client's leaving."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import anyio
import msgspec

from hostler.adapters.base import Adapter, Incoming, Operation
from hostler.adapters.errors import (
    BadRequest,
    ClientDisconnected,
    Forbidden,
    GatewayError,
    RequestCancelled,
    RequestTooLarge,
    ShuttingDown,
)
from hostler.adapters.types import ModelInfoRequest
from hostler.gateway.asgi import (
    CLIENT_KEY,
    CONTEXT_KEY,
    HEADERS_KEY,
    KNOWN_KEY,
    LINE_KEY,
    ROUTE_KEY,
    ASGIApp,
    KnownHead,
    Line,
    Receive,
    Scope,
    Send,
)
from hostler.gateway.config import ProgressMode
from hostler.gateway.context import CUT_OFF, Client, RequestContext
from hostler.gateway.events import printable
from hostler.gateway.response import ResponseWriter

logger = logging.getLogger(__name__)

#: What a stopping gateway still says may take this long, in seconds: a client that reads nothing is not waited for.
_LAST_WORD_S = 1.0

#: As many ids of requests are drawn at a time.
_IDS_AT_ONCE = 256

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class InFlightRequests:
    """The requests on their way, by their id, each with what ends it. Clients may choose ids, so two can share one."""

    def __init__(self) -> None:
        self._ends: dict[str, list[tuple[RequestContext, Callable[[], None]]]] = {}

    def enter(self, context: RequestContext, end: Callable[[], None]) -> None:
        """The request is on its way until `leave`; `end` ends it."""
        entries = self._ends.get(context.id)
        if entries is None:
            self._ends[context.id] = [(context, end)]
        else:
            entries.append((context, end))

    def leave(self, context: RequestContext) -> None:
        """The request is not on its way any more."""
        entries = self._ends.pop(context.id)
        if len(entries) > 1:
            self._ends[context.id] = [entry for entry in entries if entry[0] is not context]

    def contexts(self) -> Iterator[RequestContext]:
        """All of them, the oldest first as long as ids are distinct."""
        for entries in self._ends.values():
            for context, _ in entries:
                yield context

    def cancel(self, request_id: str) -> int:
        """End the requests with this id; how many there were."""
        entries = list(self._ends.get(request_id, ()))
        for _, end in entries:
            end()
        return len(entries)


class RequestContextMiddleware:
    """The outermost layer. The only reader of the client, and the only place where errors become answers.

    A request is cancelled as soon as its client leaves; the server tells of that (`Line`). Cancelled by anybody else, it
    is cut off by the end of the gateway, and its client is told so.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body: int,
        progress: ProgressMode,
        in_progress: InFlightRequests,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.app = app
        self._max_body = max_body
        self._progress = progress
        self._in_progress = in_progress
        self._clock = clock
        self._wall = wall
        self._ids: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = self._clock()
        claim = scope[ROUTE_KEY]
        adapter: Adapter = claim.adapter
        operation: Operation = claim.operation
        client: Client = scope[CLIENT_KEY]
        line: Line = scope[LINE_KEY]
        told = self._told(scope)
        request_id = told.id or self._new_id()
        context: RequestContext | None = None
        body: bytes | None = None
        extra: list[bytes] | None = scope.get(HEADERS_KEY)

        def facts() -> list[bytes]:
            found = _facts(request_id, context)
            return found if extra is None else found + extra

        writer = ResponseWriter(line, facts)
        try:
            headers = told.headers
            body = line.whole_body()
            if body is None or len(body) > self._max_body or "content-encoding" in headers:
                body = await self._read(body, receive, headers)
            incoming = Incoming(
                method=scope["method"],
                path=told.path,
                body=body,
                query=told.query,
                path_params=scope["path_params"],
                headers=headers,
            )
            request = adapter.decode(operation, incoming)
            if not isinstance(request, ModelInfoRequest):
                encoder = adapter.encoder(
                    request, response_id=request_id, created=int(self._wall()), progress=self._progress
                )
                encoder.set_clock(self._wall)
                writer.use(encoder)
            context = RequestContext(
                request_id=request_id,
                adapter=adapter,
                operation=operation,
                request=request,
                writer=writer,
                client=client,
                started_at=started_at,
                local_only=client.local_only or told.local_only,
                only=told.only if told.only is None else _only(told.only, client),
            )
            scope[CONTEXT_KEY] = context
            await self._watched(context, line, scope, receive, send)
        except ClientDisconnected:
            return
        except asyncio.CancelledError:
            # Neither the client nor an operator: what is in progress has had its time, and the gateway stops.
            task = asyncio.current_task()
            if task is None or task.uncancel() > 0:
                raise
            stopping = ShuttingDown(CUT_OFF)
            with anyio.move_on_after(_LAST_WORD_S, shield=True):
                await writer.fail(stopping, adapter.error_response(stopping, operation))
        except GatewayError as error:
            response = adapter.error_response(error, operation)
            if body is None:
                # Not read to its end: without closing, the server would go on reading what may never end.
                response = msgspec.structs.replace(response, headers=(*response.headers, ("Connection", "close")))
            await writer.fail(error, response)
        except Exception:
            logger.exception("request %s failed in the gateway", request_id)
            internal = GatewayError(f"something went wrong in the gateway; its log tells more under {request_id}")
            await writer.fail(internal, adapter.error_response(internal, operation))
        finally:
            context = None  # or the reply, its facts and the exchange would be left to the garbage collector

    async def _watched(self, context: RequestContext, line: Line, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and cancel it when its client leaves, or when somebody who may do so ends it."""
        task = line.task
        left = ended = False

        def leave() -> None:
            nonlocal left
            if not ended:
                left = True
                context.cancel_reason = ClientDisconnected("the client left before its answer was complete")
                task.cancel()

        def end() -> None:
            nonlocal ended
            if not (left or ended):
                ended = True
                context.cancel_reason = RequestCancelled("the request was cancelled by an operator")
                context.reason = "cancelled by an operator"
                task.cancel()

        line.on_leaving(leave)
        self._in_progress.enter(context, end)
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if not (left or ended) or task.uncancel() > 0:
                raise  # the server stops
            if ended and context.cancel_reason is not None:
                raise context.cancel_reason from None
        finally:
            self._in_progress.leave(context)
            line.on_leaving(None)

    def _told(self, scope: Scope) -> _Told:
        """What the head says. One that has come before on this connection is not read again."""
        known: KnownHead | None = scope.get(KNOWN_KEY)
        told: _Told | None = None if known is None else known.told
        if told is None:
            told = _read_head(scope)
            if known is not None:
                known.told = told
        if known is not None:
            length = scope["headers"][known.length_at][1]
            if told.length != length:
                headers = {**told.headers, "content-length": length.decode("ascii")}
                told = known.told = told._replace(headers=headers, length=length)
        return told

    def _new_id(self) -> str:
        """Nobody can guess it. Many are made at once: asking the system costs as much as the rest of it."""
        if not self._ids:
            drawn = secrets.token_hex(8 * _IDS_AT_ONCE)
            self._ids = [f"req-{drawn[at : at + 16]}" for at in range(0, len(drawn), 16)]
        return self._ids.pop()

    async def _read(self, whole: bytes | None, receive: Receive, headers: dict[str, str]) -> bytes:
        """The whole body, as long as it is within the limit. The server ends what pauses for too long."""
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise BadRequest("compressed bodies are not taken here; send it without Content-Encoding")
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_body:
            raise self._too_large()
        parts = [] if whole is None else [whole]
        size = 0 if whole is None else len(whole)
        more = whole is None
        while more and size <= self._max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("the client left before its request was complete")
            parts.append(message["body"])
            size += len(parts[-1])
            more = message["more_body"]
        if size > self._max_body:
            raise self._too_large()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(
            f"the request is larger than {round(self._max_body / 1024**2, 2):g} MiB; the limit is gateway.max_body"
        )


class _Told(NamedTuple):
    """What a request's head says, read once for all requests that come with the same. `length` is the body's."""

    headers: dict[str, str]
    length: bytes
    id: str | None
    local_only: bool
    only: str | None
    path: str
    query: str


def _read_head(scope: Scope) -> _Told:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    given = headers.get("x-request-id", "")
    return _Told(
        headers=headers,
        length=headers.get("content-length", "").encode("latin-1"),
        id=given if _REQUEST_ID.fullmatch(given) else None,
        local_only=_wish(headers, "x-hostler-local-only") is not None,
        only=_wish(headers, "x-hostler-only"),
        path=(scope.get("raw_path") or scope["path"].encode()).decode("latin-1").partition("?")[0],
        query=scope["query_string"].decode("latin-1"),
    )


def _wish(headers: dict[str, str], name: str) -> str | None:
    """What a client says in a header of ours; `None` if it says nothing, or no."""
    value = headers.get(name, "").strip()
    return None if value.lower() in ("", "false", "0", "no") else value


def _only(name: str, client: Client) -> str:
    """The one backend that is to answer, for those who look after backends."""
    if "operate" not in client.scopes:
        raise Forbidden("naming a backend with X-Hostler-Only needs a key with the scope operate")
    return name


def _facts(request_id: str, context: RequestContext | None) -> list[bytes]:
    """The header lines that tell how a request was served, as far as it is known now."""
    facts = [b"x-request-id: " + request_id.encode("latin-1")]
    if context is None or context.attempt is None:
        return facts
    target, queue_s, switch_s = context.attempt.target, context.queue_s, context.switch_s
    facts += _whereabouts(target.backend, target.model, context.attempt.hop)
    if queue_s or switch_s:
        facts.append(b"x-hostler-queue-ms: %d" % round(queue_s * 1000))
        facts.append(b"x-hostler-switch-ms: %d" % round(switch_s * 1000))
    else:
        facts += _NEVER_WAITED
    if context.reason:
        why = printable(" ".join(context.reason.split())[:200])
        facts.append(f"x-hostler-reason: {why}".encode("latin-1", "replace"))
    return facts


_NEVER_WAITED = (b"x-hostler-queue-ms: 0", b"x-hostler-switch-ms: 0")


@lru_cache(maxsize=256)
def _whereabouts(backend: str, model: str, hop: int) -> tuple[bytes, ...]:
    lines = (f"x-hostler-backend: {backend}", f"x-hostler-model: {model}", f"x-hostler-hop: {hop}")
    return tuple(printable(line).encode("latin-1", "replace") for line in lines)
