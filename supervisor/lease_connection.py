"""The gateway's end of the connection that `lease_frames` describes: one request whose body and answer never end.

A protocol of its own, since no HTTP client library reads an answer while it still sends the request, and each frame would
cost several times as much.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from hostler.adapters.redaction import redacted
from hostler.supervisor.contract import SupervisorUnreachable
from hostler.supervisor.lease_frames import (
    MEDIA_TYPE,
    PATH,
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    AskFrame,
    ErrorFrame,
    EventFrame,
    InvalidFrame,
    encode_frames,
    event_reader,
)
from hostler.supervisor.schemas import SupervisorErrorResponse
from hostler.supervisor.socket_url import HOST, socket_path

#: What a supervisor may leave unread, in bytes; the connection is given up when there is more.
MAX_UNSENT: Final = 8 * 1024 * 1024

#: The longest error answer that is read.
_MAX_ERROR: Final = 64 * 1024


class LeaseConnection(asyncio.Protocol):
    """One connection. `on_frame` gets each frame; `closed` is set once, with the reason in `lost`, when it has ended.

    `rejected`: the supervisor says that this gateway has broken the protocol. `heard_at` is when anything was last
    received, by the loop's clock.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, head: bytes, on_frame: Callable[[EventFrame], None]) -> None:
        self._loop = loop
        self._head = head
        self._on_frame = on_frame
        self._parser = httptools.HttpResponseParser(self)
        self._frames = event_reader()
        self._transport: asyncio.Transport | None = None
        self._outbox: list[msgspec.Struct] = []
        self._turn = self._asked = False
        self._error_body = b""
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.closed = asyncio.Event()
        self.lost = ""
        self.rejected = False
        self.heard_at = loop.time()

    def send(self, frame: msgspec.Struct) -> None:
        """Send a frame with all others of this turn of the loop. The first one that asks for a lease goes at once, with those
        before it: while much else is ready, the next turn is far."""
        self._outbox.append(frame)
        if not self._turn:
            self._turn = True
            self._loop.call_soon(self._end_turn)
        if not self._asked and isinstance(frame, AskFrame):
            self._asked = True
            self._flush()

    def _end_turn(self) -> None:
        self._turn = self._asked = False
        self._flush()

    def close(self, reason: str) -> None:
        """Give the connection up at once."""
        self.lost = self.lost or reason
        if self._transport is not None:
            self._transport.abort()

    def finish(self) -> None:
        """End the connection in good order, after everything that was sent."""
        if self._transport is not None and not self._transport.is_closing():
            self._flush()
            self._transport.write(b"0\r\n\r\n")
            self._transport.close()

    def _flush(self) -> None:
        frames, self._outbox = self._outbox, []
        if self._transport is None or self._transport.is_closing() or not frames:
            return
        data = encode_frames(frames)
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self.close("does not read")

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            if cause is not None and not isinstance(cause, InvalidFrame):
                self.close("sent a frame that could not be handled")
                raise cause from None  # raised by `on_frame`; the parser wraps it
            self.close(f"does not respond like a supervisor: {cause or type(error).__name__}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self.lost or "closed the connection"
        if not self.accepted.done():
            self.accepted.set_exception(_Rejected(0, b""))
        self.closed.set()
        self._parser = cast(Any, None)  # it refers to this object

    # Called by the parser.

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() == 200 and not self.accepted.done():
            self.accepted.set_result(None)

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() != 200:
            self._error_body += body[: _MAX_ERROR - len(self._error_body)]
            return
        for frame in self._frames.feed(body):
            if isinstance(frame, ErrorFrame):
                self.rejected = True
                self.lost = self.lost or f"ended the connection: {frame.message}"
            else:
                self._on_frame(frame)

    def on_message_complete(self) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(_Rejected(self._parser.get_status_code(), self._error_body))
        self.lost = self.lost or "ended the connection"
        if self._transport is not None:
            self._transport.close()


class IncompatibleSupervisor(SupervisorUnreachable):
    """The supervisor speaks another version of the protocol."""


class _Rejected(Exception):
    """The answer is not a stream of frames; `status` 0: there was none."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


async def open_connection(
    url: str,
    token: str | None,
    on_frame: Callable[[EventFrame], None],
    *,
    timeout_s: float,
    tls: ssl.SSLContext | None = None,
) -> LeaseConnection:
    """Connect to the supervisor at `url`, with `tls` if that is not what the system trusts.

    Raises `SupervisorUnreachable` with the reason and what to do about it.
    """
    loop = asyncio.get_running_loop()
    path = socket_path(url)
    parts = urlsplit(f"http://{HOST}" if path else url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    lines = [
        f"POST {parts.path.rstrip('/')}{PATH} HTTP/1.1",
        f"Host: {f'[{host}]' if ':' in host else host}:{port}",
        f"Content-Type: {MEDIA_TYPE}",
        f"{PROTOCOL_HEADER}: {PROTOCOL_VERSION}",
        "Transfer-Encoding: chunked",
    ]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    head = "\r\n".join((*lines, "", "")).encode()
    connection = LeaseConnection(loop, head, on_frame)
    try:
        async with asyncio.timeout(timeout_s):
            if path is not None:
                await loop.create_unix_connection(lambda: connection, path)
            else:
                await loop.create_connection(
                    lambda: connection, host, port, ssl=(tls or ssl.create_default_context()) if secure else None
                )
            await connection.accepted
    except TimeoutError:
        connection.close("did not answer")
        raise SupervisorUnreachable(f"the supervisor at {url} did not answer within {timeout_s:g} s") from None
    except ssl.SSLCertVerificationError as error:
        connection.close("has another certificate")
        raise SupervisorUnreachable(
            f"the supervisor at {url} has a certificate that is not trusted ({error.verify_message}); set the backend's "
            "certificate to a copy of the supervisor's"
        ) from None
    except OSError as error:
        what = "refuses connections" if isinstance(error, ConnectionRefusedError) else f"cannot be reached ({error})"
        raise SupervisorUnreachable(f"the supervisor at {url} {what}") from None
    except _Rejected as rejected:
        connection.close("rejected the connection")
        kind = IncompatibleSupervisor if rejected.status in (404, 426) else SupervisorUnreachable
        raise kind(f"the supervisor at {url} {_explain(rejected, token)}") from None
    except BaseException:
        connection.close("cancelled")
        raise
    return connection


def _explain(rejected: _Rejected, token: str | None) -> str:
    if rejected.status == 0:
        return "closed the connection without an answer"
    if rejected.status == 401:
        return "rejected the token (401): set the backend's token to the supervisor's"
    if rejected.status == 404:
        return f"is of an older release: it has no {PATH}; update it"
    try:
        message = msgspec.json.decode(redacted(rejected.body, token), type=SupervisorErrorResponse).error.message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return f"returned {rejected.status}, but not as a supervisor does"
    return f"returned {rejected.status}: {message}"
