"""From bytes to an exchange and back out: the body, the protocol's decoding, errors, and the client's leaving."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import msgspec
from anyio.abc import TaskGroup

from hostler.adapters.canonical import Probe
from hostler.adapters.errors import BadRequest, Cancelled, ClientGone, Forbidden, GatewayError, TooLarge
from hostler.adapters.protocol import Adapter, Incoming, Operation
from hostler.gateway.asgi import CLAIM_KEY, CLIENT_KEY, EXCHANGE_KEY, ASGIApp, Receive, Scope, Send
from hostler.gateway.exchange import Client, Exchange
from hostler.gateway.reply import Reply
from hostler.gateway.settings import ProgressMode

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

#: A client that sends its body may pause this long, in seconds.
BODY_SILENCE_S = 30.0


class InProgress:
    """The requests on their way, by their id, each with what ends it. Clients may choose ids, so two can share one."""

    def __init__(self) -> None:
        self._ends: dict[str, list[tuple[Exchange, Callable[[], None]]]] = {}

    @contextmanager
    def entered(self, exchange: Exchange, end: Callable[[], None]) -> Iterator[None]:
        """The request is on its way as long as the context lasts; `end` ends it."""
        entry = (exchange, end)
        entries = self._ends.setdefault(exchange.id, [])
        entries.append(entry)
        try:
            yield
        finally:
            entries.remove(entry)
            if not entries:
                del self._ends[exchange.id]

    def exchanges(self) -> Iterator[Exchange]:
        """All of them, the oldest first as long as ids are distinct."""
        for entries in self._ends.values():
            for exchange, _ in entries:
                yield exchange

    def cancel(self, request_id: str) -> int:
        """End the requests with this id; how many there were."""
        entries = list(self._ends.get(request_id, ()))
        for _, end in entries:
            end()
        return len(entries)


class Edge:
    """The outermost layer. The only reader of the client, and the only place where errors become answers.

    `tasks` is the group in which clients are watched while their request is worked on: the server does not cancel
    an application whose client has left.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tasks: TaskGroup,
        max_body: int,
        progress: ProgressMode,
        in_progress: InProgress,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.app = app
        self._tasks = tasks
        self._max_body = max_body
        self._progress = progress
        self._in_progress = in_progress
        self._clock = clock
        self._wall = wall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_at = self._clock()
        claim = scope[CLAIM_KEY]
        adapter: Adapter = claim.adapter
        operation: Operation = claim.operation
        client: Client = scope[CLIENT_KEY]
        if scope["method"] == "HEAD":
            send = _without_body(send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = _request_id(headers)
        exchange: Exchange | None = None
        body: bytes | None = None

        def facts() -> list[tuple[str, str]]:
            return _facts(request_id, exchange)

        reply = Reply(send, facts)
        try:
            body = await self._read(receive, headers)
            incoming = Incoming(
                method=scope["method"],
                path=(scope.get("raw_path") or scope["path"].encode()).decode("latin-1").partition("?")[0],
                body=body,
                query=scope["query_string"].decode("latin-1"),
                path_params=scope["path_params"],
                headers=headers,
            )
            request = adapter.decode(operation, incoming)
            if not isinstance(request, Probe):
                encoder = adapter.encoder(request, id=request_id, created=int(self._wall()), progress=self._progress)
                reply.use(encoder)
            exchange = Exchange(
                request_id=request_id,
                adapter=adapter,
                operation=operation,
                request=request,
                reply=reply,
                client=client,
                started_at=started_at,
                local_only=client.local_only or _wish(headers, "x-hostler-local-only") is not None,
                only=_only(headers, client),
            )
            scope[EXCHANGE_KEY] = exchange
            await self._watched(exchange, scope, receive, send)
        except ClientGone:
            return
        except GatewayError as error:
            response = adapter.refuse(error, operation)
            if body is None:
                # Not read to its end: without closing, the server would go on reading what may never end.
                response = msgspec.structs.replace(response, headers=(*response.headers, ("Connection", "close")))
            await reply.fail(error, response)
        except Exception:
            logger.exception("request %s failed in the gateway", request_id)
            internal = GatewayError(f"something went wrong in the gateway; its log tells more under {request_id}")
            await reply.fail(internal, adapter.refuse(internal, operation))

    async def _watched(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and cancel it when its client leaves, or when somebody who may do so ends it."""
        work = anyio.CancelScope()
        watch = anyio.CancelScope()
        ended = False

        def end() -> None:
            nonlocal ended
            ended = True
            exchange.reason = "cancelled by an operator"
            work.cancel()

        async def wait_for_leaving() -> None:
            with watch:
                # Once the body is read, the server has nothing more to say until the client leaves.
                while (await receive())["type"] != "http.disconnect":
                    pass
                work.cancel()

        self._tasks.start_soon(wait_for_leaving)
        try:
            with self._in_progress.entered(exchange, end), work:
                await self.app(scope, receive, send)
        finally:
            # The server reports a disconnect after every complete answer, too: nobody may listen then.
            watch.cancel()
        if ended and work.cancelled_caught:
            raise Cancelled("the request was cancelled by an operator")

    async def _read(self, receive: Receive, headers: dict[str, str]) -> bytes:
        """The whole body, as long as it is within the limit."""
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise BadRequest("compressed bodies are not taken here; send it without Content-Encoding")
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_body:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while True:
            with anyio.move_on_after(BODY_SILENCE_S) as waited:
                message = await receive()
            if waited.cancelled_caught:
                raise BadRequest(f"the body did not arrive: nothing came for {BODY_SILENCE_S:.0f} seconds")
            if message["type"] == "http.disconnect":
                raise ClientGone("the client left before its request was complete")
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body:
                raise self._too_large()
            if part:
                parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the request is larger than {self._max_body / 1024**2:.0f} MiB; the limit is gateway.max_body")


def _request_id(headers: dict[str, str]) -> str:
    """The client's own id of the request if it is a harmless one, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"


def _wish(headers: dict[str, str], name: str) -> str | None:
    """What a client says in a header of ours; `None` if it says nothing, or no."""
    value = headers.get(name, "").strip()
    return None if value.lower() in ("", "false", "0", "no") else value


def _only(headers: dict[str, str], client: Client) -> str | None:
    """The one backend that is to answer, for those who look after backends."""
    name = _wish(headers, "x-hostler-only")
    if name is not None and "operate" not in client.scopes:
        raise Forbidden("naming a backend with X-Hostler-Only needs a key with the scope operate")
    return name


def _facts(request_id: str, exchange: Exchange | None) -> list[tuple[str, str]]:
    """The headers that tell how a request was served, as far as it is known now."""
    facts = [("X-Request-ID", request_id)]
    if exchange is None:
        return facts
    if exchange.target is not None:
        facts += [
            ("X-Hostler-Backend", exchange.target.backend),
            ("X-Hostler-Model", exchange.target.model),
            ("X-Hostler-Hop", str(exchange.hop)),
            ("X-Hostler-Queue-Ms", str(round(exchange.queue_s * 1000))),
            ("X-Hostler-Switch-Ms", str(round(exchange.switch_s * 1000))),
        ]
        if exchange.reason:
            facts.append(("X-Hostler-Reason", " ".join(exchange.reason.split())[:200]))
    return facts


def _without_body(send: Send) -> Send:
    async def head_only(message: Scope) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return head_only
