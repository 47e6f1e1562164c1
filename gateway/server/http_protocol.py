"""HTTP/1.1 to one client: uvicorn's httptools protocol with strict parsing, and limits on everything a client can delay.

Routing and authentication are up to the application.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from hostler.gateway.asgi import UPGRADE, ByteStream
from hostler.gateway.server.cycle import Cycle
from hostler.gateway.server.head_cache import HeadCache
from hostler.gateway.server.upgrade import switch_protocols

if TYPE_CHECKING:
    from uvicorn._types import ASGIVersions, HTTPScope
    from uvicorn.config import Config
    from uvicorn.server import ServerState

_NEVER = float("inf")
_ASGI: ASGIVersions = {"version": "3.0", "spec_version": "2.3"}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one connection, in seconds, bytes and counts.

    `head_s` is the time from a request's first byte, or the start of the connection, to the end of the head, `body_s` the
    longest pause in a body, `idle_s` the longest pause between requests, and `stall_s` the longest time in which a client
    reads nothing of its answer. After the last answer of a connection, bytes that still arrive are read and discarded for
    `linger_s`: closing with unread bytes would reset the connection, and the answer would be lost. After the server is
    stopped, a request is still served if it arrives within `stop_s`, the first one of a connection within `first_s`.
    """

    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 75.0
    stall_s: float = 300.0
    linger_s: float = 2.0
    stop_s: float = 0.25
    first_s: float = 1.0
    head_bytes: int = 64 * 1024
    headers: int = 100
    unread_bytes: int = 256 * 1024
    pipelined: int = 16


class HTTPProtocol(HttpToolsProtocol):
    """The server's side of one connection. Requests that arrive while another one is being answered wait in order.

    `reading` is the request whose body is still arriving, `active` the one that is being answered. The server calls
    `expire` periodically, since a timer per deadline would cost each request 1 µs.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.parser = httptools.HttpRequestParser(self)  # uvicorn's is lenient
        self.limits = limits or Limits()
        self.reading: Cycle | None = None
        self.active: Cycle | None = None
        self.waiting: deque[Cycle] = deque()
        self.heads = HeadCache()
        self.deadline = _NEVER
        self.stalled_at = _NEVER
        self.in_head = False
        self.head_size = 0
        self.chunked = False
        self.upgrading = False
        self.wants_websocket = False
        self.handed_over = False
        self.refusal: tuple[int, str] | None = None
        self.served = False
        self.stopping = False
        self.discarding = False
        self.lingering = False
        self.gone = False

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        if self.server is not None and self.server[0].startswith("::ffff:"):
            self.server = _unmapped(self.server[0]), self.server[1]
        if self.client is not None and self.client[0].startswith("::ffff:"):
            self.client = _unmapped(self.client[0]), self.client[1]
        self.deadline = self.loop.time() + self.limits.head_s

    def data_received(self, data: bytes) -> None:
        if self.discarding:
            return
        idle = self.reading is None and self.active is None and not self.in_head
        if idle:
            if (found := self.heads.match(data)) is not None:
                scope, body = found
                self.deadline = _NEVER
                self.expect_100_continue = False
                self._start(Cycle(self, scope, keep_alive=True, body=body))
                return
            # Empty lines before a request are allowed, but do not extend the deadline.
            self.deadline = min(self.deadline, self.loop.time() + self.limits.head_s)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._feed_after(data, upgrade)
            cycle = self.active
            whole = not (self.in_head or self.reading or self.waiting or self.expect_100_continue)
            if idle and whole and cycle is not None and cycle.keep_alive and cycle.scope is not None:
                self.heads.remember(data, cycle.scope)
        except httptools.HttpParserError:
            self.refuse(*(self.refusal or (400, "this is not a well-formed HTTP/1.1 request")))
        else:
            if self.in_head:
                self.head_size += len(data)
                if self.head_size > self.limits.head_bytes:
                    self.refuse(431, "the request head is too large")

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.connections.discard(self)
        self.deadline = self.stalled_at = _NEVER
        self.parser = cast(Any, None)  # it refers to this object
        self.waiting.clear()
        self.flow.resume_writing()
        for cycle in {self.reading, self.active}:
            if cycle is not None:
                cycle.disconnect()
        self.reading = None

    def pause_writing(self) -> None:
        super().pause_writing()
        # Separate from the deadline for reading, which further requests move.
        self.stalled_at = self.loop.time() + self.limits.stall_s

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self.stalled_at = self.loop.time() + self.limits.stall_s if self.lingering else _NEVER
            if self.active is None and not self.discarding:
                self._await_request()

    # Called by the parser.

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self.in_head = True
        self.head_size = 0
        self.chunked = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head_size += len(name) + len(value) + 4
        if self.head_size > self.limits.head_bytes or len(self.headers) >= self.limits.headers:
            self._reject(431, "the request has too many or too large headers")
        if not self.in_head:
            return  # trailers must not count as headers
        name = name.lower()
        if name == b"transfer-encoding":
            self.chunked = True
            if value.strip().lower() != b"chunked":
                self._reject(501, "unsupported Transfer-Encoding; only chunked is supported")
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser, url = self.parser, self.url
        method = parser.get_method()
        if method == b"CONNECT":
            self._reject(400, "CONNECT is not supported")
        if parser.should_upgrade():
            self.upgrading = True  # the request starts when its head is parsed again without `Upgrade`
            return
        version = parser.get_http_version()
        if version != "1.1" and (version != "1.0" or self.chunked):
            self._reject(400, "unsupported HTTP version; use HTTP/1.1")
        if not url.startswith(b"/") and url != b"*":
            self._reject(400, "the request target must be a path")
        self.in_head = False
        self.deadline = self.loop.time() + self.limits.body_s
        raw_path, _, query = url.partition(b"#")[0].partition(b"?")
        path = raw_path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        scope: HTTPScope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "method": method.decode("ascii"),
            "root_path": self.root_path,
            "path": self.root_path + path,
            "raw_path": self.root_path.encode("ascii") + raw_path if self.root_path else raw_path,
            "query_string": query,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "extensions": {UPGRADE: {"accept": self.hand_over}} if self.wants_websocket else {},
        }
        self.wants_websocket = False
        cycle = self.reading = Cycle(self, scope, keep_alive=version == "1.1" and parser.should_keep_alive())
        if self.active is None:
            self._start(cycle)
        else:
            self.waiting.append(cycle)
            if len(self.waiting) >= self.limits.pipelined:
                self.pause_reading()

    def on_body(self, body: bytes) -> None:
        cycle = self.reading
        if cycle is not None:
            self.deadline = self.loop.time() + self.limits.body_s
            cycle.body.append(body)
            cycle.unread += len(body)
            if cycle.unread > self.limits.unread_bytes:
                self.pause_reading()
            if cycle.event is not None:
                cycle.event.set()

    def on_message_complete(self) -> None:
        cycle = self.reading
        if cycle is not None and not self.upgrading:
            self.reading = None
            self.deadline = _NEVER
            cycle.more_body = False
            if cycle.event is not None:
                cycle.event.set()

    # Called by cycles.

    def pause_reading(self) -> None:
        """Stop reading, so that the kernel's buffer fills and the client has to wait."""
        if not self.gone:
            self.deadline = _NEVER
            self.flow.pause_reading()

    def resume_reading(self) -> None:
        """Continue reading, if it was paused."""
        if self.flow.read_paused and not self.gone:
            if self.reading is not None:
                self.deadline = self.loop.time() + self.limits.body_s
            self.flow.resume_reading()

    def close(self) -> None:
        """Close once the client has read what was written, within `stall_s`."""
        if not self.transport.is_closing():
            self.deadline = _NEVER
            self.stalled_at = min(self.stalled_at, self.loop.time() + self.limits.stall_s)
            self.transport.close()

    def hand_over(self, headers: Iterable[tuple[bytes, bytes]]) -> ByteStream:
        """See `AcceptUpgrade`. The connection ends with its stream; a server that stops cancels the request."""
        cycle = self.active
        if self.gone or cycle is None:
            raise ConnectionResetError("the client has disconnected")
        if self.reading or self.waiting or self.in_head or self.discarding:
            raise ConnectionResetError("the client sent data before the handshake was complete")
        if self.stopping:
            raise ConnectionAbortedError("the server is stopping")
        stream = switch_protocols(self.transport, headers, partial(self.connections.discard, self))
        self.gone = self.handed_over = cycle.disconnected = True
        self.deadline = self.stalled_at = _NEVER
        self.parser = cast(Any, None)
        return stream

    def on_response_complete(self) -> None:
        cycle, self.active = self.active, None
        self.server_state.total_requests += 1
        if self.gone or self.lingering or cycle is None:
            return
        if cycle is self.reading:
            self._linger(self.limits.linger_s)
        elif not cycle.keep_alive:
            self.close()
        elif self.waiting:
            self._start(self.waiting.popleft())
            self.resume_reading()
        elif self.stopping:
            self._linger(self.limits.stop_s)
        elif self.refusal is not None:
            self._send_error(*self.refusal)
        else:
            if self.flow.read_paused:
                self.resume_reading()
            if not self.flow.write_paused:
                self._await_request()

    # Called by the server.

    def shutdown(self) -> None:
        """The server stops. Answers in progress are finished, and a request that is already on its way is still served.

        A client that gets `Connection: close`, or the end of the connection with its answer, sends no further request. A
        client with an idle connection may just have sent one, so its connection stays open for a moment.
        """
        self.stopping = True
        if self.handed_over and self.active is not None:
            self.active.task.cancel("the server is stopping")
        elif self.active is None and not self.discarding and not self.in_head:
            patience_s = self.limits.stop_s if self.served else self.limits.first_s
            self.deadline = min(self.deadline, self.loop.time() + patience_s)

    def expire(self, now: float) -> None:
        """Close the connection if a deadline has passed."""
        if self.gone or now < min(self.deadline, self.stalled_at):
            return
        if now >= self.stalled_at:
            self.transport.abort()
        elif self.flow.write_paused and not self.discarding:
            return  # an error could not be sent: the client does not read
        elif self.discarding:
            if self.transport.get_write_buffer_size():
                self.deadline = now + self.limits.stop_s  # the client still reads, within `stall_s`
            elif self.transport.can_write_eof() or self.transport.is_closing():
                self.transport.abort()
            else:
                self.deadline = now + self.limits.stop_s
                self.transport.close()
        elif self.in_head and self.active is None:
            self.refuse(408, "the request head did not arrive in time")
        elif self.reading is not None:
            self.refuse(408, f"the request body did not arrive in time: no data for {self.limits.body_s:.0f} seconds")
        else:
            self._linger(self.limits.stop_s if self.stopping else self.limits.linger_s)

    def refuse(self, status: int, why: str) -> None:
        """Stop reading, and send this error after the answers to earlier requests."""
        self.refusal = (status, why)
        self.in_head = False
        self.discarding = True
        self.deadline = _NEVER  # an answer in progress has its own limits
        reading, self.reading = self.reading, None
        if reading is not None and reading is self.active:
            # The body is invalid: the application gets a disconnect, since no more of it will arrive.
            if reading.response_started:
                reading.keep_alive = False
            else:
                self._send_error(status, why)
            reading.disconnect()
        else:
            if reading is not None:
                self.waiting.remove(reading)
            if self.active is None:
                self._send_error(status, why)

    def _feed_after(self, data: bytes, upgrade: httptools.HttpParserUpgrade) -> None:
        """Ignore `Upgrade`, as HTTP allows: parse the head again without it, since the parser would not read the body.
        The application may still accept one to WebSocket."""
        rest = memoryview(data)
        while True:
            rest = rest[upgrade.args[0] :]
            self.upgrading = False
            self.wants_websocket = any(
                name == b"upgrade" and value.strip().lower() == b"websocket" for name, value in self.headers
            )
            version = self.parser.get_http_version().encode("ascii")
            lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
            lines += [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
            head = b"\r\n".join(lines)
            if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
                self.refusal = (400, "a header contains a line break")
                raise httptools.HttpParserError("a header contains a line break")
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(head + b"\r\n\r\n")
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as another:
                upgrade = another

    def _reject(self, status: int, why: str) -> None:
        self.refusal = (status, why)
        raise ValueError(why)  # makes the parser raise, see `data_received`

    def _await_request(self) -> None:
        idle_s = self.limits.stop_s if self.stopping else self.limits.idle_s
        self.deadline = self.loop.time() + (self.limits.head_s if self.in_head else idle_s)

    def _start(self, cycle: Cycle) -> None:
        self.active = cycle
        self.served = True
        cycle.task = task = self.loop.create_task(cycle.run_asgi(self.app))
        self.tasks.add(task)

    def _send_error(self, status: int, why: str) -> None:
        body = msgspec.json.encode({"error": {"message": why, "type": "invalid_request_error", "code": status}})
        self.transport.write(
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (STATUS_LINE[status], len(body), body)
        )
        self._linger(self.limits.linger_s)

    def _linger(self, seconds: float) -> None:
        """Send the end of the connection, then read and discard for a while: see `Limits`."""
        self.discarding = self.lingering = True
        now = self.loop.time()
        if not self.gone and not self.transport.is_closing():
            self.resume_reading()
            if self.transport.get_write_buffer_size():
                self.stalled_at = min(self.stalled_at, now + self.limits.stall_s)
            if self.transport.can_write_eof():  # TLS cannot
                self.transport.write_eof()
        self.deadline = now + seconds


def _unmapped(address: str) -> str:
    """The IPv4 address, if this is an IPv4-mapped IPv6 address, else the address."""
    mapped = ipaddress.IPv6Address(address.partition("%")[0]).ipv4_mapped
    return address if mapped is None else str(mapped)
