"""Requests that a worker passes on to the main process, over its Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from functools import partial
from typing import Final
from urllib.parse import quote

import httptools
import msgspec

from hostler.gateway.asgi import HEAD, UPGRADE, ASGIApp, ByteStream, Receive, Scope, Send
from hostler.gateway.backends.websocket_tunnel import BackendSocket

logger = logging.getLogger(__name__)

#: The header with the secret of this start, and with what only the worker knows of the client.
HEADER: Final = b"x-hostler-forwarded"

#: Bytes that are read in one go.
_PIECE: Final = 64 * 1024

#: Headers of one connection, not of the next; `date` is added by each server.
_REQUEST_ONLY: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"expect", b"transfer-encoding", HEADER)
)
_ANSWER_ONLY: Final = frozenset((b"keep-alive", b"proxy-connection", b"transfer-encoding", b"date"))

_ABORTED: Final = (
    b'{"error":{"message":"the gateway was stopped before the request was done","type":"server_error",'
    b'"code":"shutting_down"}}'
)
_UNAVAILABLE: Final = b'{"error":{"message":"the gateway is restarting; try again in a moment","type":"server_error"}}'


class ClientConnection(msgspec.Struct, frozen=True, array_like=True):
    """What a worker knows of a request's connection."""

    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    scheme: str
    root_path: str


class AnswerBrokenOff(Exception):
    """The main process ended its answer in the middle; the client's connection is closed, so that it learns of it."""


class Forwarder:
    """An application that has the main process, which listens on the Unix socket `path`, answer requests.

    A client that disconnects is gone there as well. An answer that breaks off raises `AnswerBrokenOff`.
    """

    def __init__(self, path: str, secret: str) -> None:
        self._path = path
        self._secret = secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(self._path, limit=_PIECE)
        except OSError as error:
            logger.warning("the main process cannot be reached: %s", error)
            await _send_unavailable(send)
            return
        body = _RequestBody(receive, writer, chunked=_is_chunked(scope))
        try:
            writer.write(self._head(scope))
            sending = asyncio.create_task(body.send())
            try:
                answer = await self._pass_on(scope, reader, body, send)
            finally:
                sending.cancel()
                await asyncio.wait((sending,))
            if answer is not None:
                client: ByteStream = scope["extensions"][UPGRADE]["accept"](answer.headers)
                await BackendSocket(ByteStream(reader, writer), answer.headers, "the main process").relay(client)
        finally:
            writer.transport.abort()

    def _head(self, scope: Scope) -> bytes:
        path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        query: bytes = scope["query_string"]
        target = path + b"?" + query if query else path
        known = ClientConnection(
            scope.get("client"), scope.get("server"), scope.get("scheme", "http"), scope.get("root_path", "")
        )
        lines = [b"%b %b HTTP/1.1" % (scope["method"].encode(), target)]
        lines += [b"%b: %b" % pair for pair in scope["headers"] if pair[0] not in _REQUEST_ONLY]
        lines.append(b"%b: %b %b" % (HEADER, self._secret, msgspec.json.encode(known)))
        if _is_chunked(scope):
            lines.append(b"transfer-encoding: chunked")
        if UPGRADE in scope.get("extensions", {}):  # the server has removed these from the head
            lines += [b"upgrade: websocket", b"connection: upgrade"]
        return b"\r\n".join((*lines, b"", b""))

    async def _pass_on(
        self, scope: Scope, reader: asyncio.StreamReader, body: _RequestBody, send: Send
    ) -> _Answer | None:
        """Pass the answer on. One that switches protocols is returned instead."""
        answer, started = _Answer(head_only=scope["method"] == "HEAD"), False
        read = partial(reader.read, _PIECE)
        if UPGRADE in scope.get("extensions", {}):  # what follows the head may be another protocol's
            read = partial(reader.readuntil, b"\r\n\r\n")
        while True:
            try:
                data = await read()
            except (OSError, asyncio.IncompleteReadError):
                data = b""
            except asyncio.CancelledError:
                if not started and not body.client_left:  # this process stops, and waits no longer
                    await _send(send, 503, _ABORTED)
                raise
            read = partial(reader.read, _PIECE)
            answer.feed(data)
            if answer.status == 101:
                return answer
            if answer.status and not started:
                started = True
                await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
            piece = answer.take()
            if answer.complete:
                await send({"type": "http.response.body", "body": piece, "more_body": False})
                return None
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if data:
                continue
            if started and not body.client_left:
                raise AnswerBrokenOff
            if not body.client_left:
                await _send_unavailable(send)
            return None


class ForwardedMiddleware:
    """In the main process: the requests that workers have passed on, as they received them. Others are refused."""

    def __init__(self, app: ASGIApp, *, secret: str) -> None:
        self.app = app
        self._secret = secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        secret, _, known = next((value for name, value in scope["headers"] if name == HEADER), b"").partition(b" ")
        if not hmac.compare_digest(secret, self._secret):
            await _send_forbidden(send)
            return
        connection = msgspec.json.decode(known, type=ClientConnection)
        await self.app(
            {
                **scope,
                "client": connection.client,
                "server": connection.server,
                "scheme": connection.scheme,
                "root_path": connection.root_path,
                "headers": [pair for pair in scope["headers"] if pair[0] != HEADER],
                # What a connection's last head led to says nothing of another client's.
                "extensions": {name: value for name, value in scope.get("extensions", {}).items() if name != HEAD},
            },
            receive,
            send,
        )


class _RequestBody:
    """Sends a request's body on, and closes the connection once the client has disconnected."""

    def __init__(self, receive: Receive, writer: asyncio.StreamWriter, *, chunked: bool) -> None:
        self._receive = receive
        self._writer = writer
        self._chunked = chunked
        self.client_left = False

    async def send(self) -> None:
        while (message := await self._receive())["type"] != "http.disconnect":
            data: bytes = message.get("body", b"")
            if data:
                self._writer.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
            if self._chunked and not message.get("more_body", False):
                self._writer.write(b"0\r\n\r\n")
                self._chunked = False
            with contextlib.suppress(OSError):  # the main process has answered without reading on
                await self._writer.drain()
        self.client_left = True
        self._writer.transport.abort()


class _Answer:
    """Parses an answer. `status` is set once the head is complete."""

    def __init__(self, *, head_only: bool) -> None:
        self._head_only = head_only
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def feed(self, data: bytes) -> None:
        """Parse the next bytes, none at the end. Raises `AnswerBrokenOff` for what is no answer."""
        try:
            if data:
                self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            if not self.complete:
                raise AnswerBrokenOff from error

    def take(self) -> bytes:
        """The bytes of the body that have arrived."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name not in _ANSWER_ONLY:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self._head_only:
            self.complete = True

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self.complete = True


def _is_chunked(scope: Scope) -> bool:
    return any(name == b"transfer-encoding" for name, _ in scope["headers"])


async def _send_unavailable(send: Send) -> None:
    await _send(send, 503, _UNAVAILABLE, ((b"retry-after", b"1"),))


async def _send_forbidden(send: Send) -> None:
    await _send(send, 403, b'{"error":{"message":"only workers of this gateway are served here"}}')


async def _send(send: Send, status: int, body: bytes, more: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more]
    # The request's body was not read: close, or the server would go on reading what may never end.
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
