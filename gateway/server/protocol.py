"""HTTP/1.1 to one client: strict reading, few writes, and an end to everything that a client could drag out.

It knows nothing of paths or keys: what a request means is the application's business (`Call` is its ASGI side).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections import deque
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import httptools
import msgspec

from hostler.gateway.asgi import KNOWN_KEY, LINE_KEY, ASGIApp, KnownHead, Scope
from hostler.gateway.server.call import STATUS_LINES, Call

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

logger = logging.getLogger(__name__)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one client may take of time (seconds) and room.

    `head_s` runs from a request's first byte, or the connection's beginning, to the end of the head; a body may pause
    for `body_s`. `idle_s` is how long a connection lies unused between requests, `stall_s` how long a client takes
    nothing of its answer. After an
    answer to a request that was not read to its end, what still comes is thrown away for `linger_s`, so that the
    answer is not lost with it.
    """

    head_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 75.0
    stall_s: float = 300.0
    linger_s: float = 2.0
    head_bytes: int = 64 * 1024
    headers: int = 100
    unread_bytes: int = 256 * 1024
    pipelined: int = 16


_NEVER = float("inf")

#: So often a head is remembered on a connection where none of them ever came again.
_TRIES = 8
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(0|[1-9][0-9]{0,8})[ \t]*\r\n", re.IGNORECASE)
_ASGI = {"version": "3.0", "spec_version": "2.4"}


class _Seen:
    """A head as it came and was read, with its request's body behind it: `before` and `after` stand around the digits of
    the body's length. Whatever has the same bytes there, and the body that it promises, is the same request but for the
    body."""

    __slots__ = ("after", "before", "digits", "known", "scope")

    def __init__(self, before: bytes, digits: bytes, after: bytes, scope: Scope, length_at: int) -> None:
        self.before = before
        self.digits = digits
        self.after = after
        self.known = KnownHead(length_at)
        self.scope = {**scope, KNOWN_KEY: self.known}
        del self.scope[LINE_KEY]

    def again(self, data: bytes) -> tuple[Scope, bytes] | None:
        """The scope and the body, if these bytes are such a request, to its end and not beyond it."""
        before, after = self.before, self.after
        if not data.startswith(before):
            return None
        start = len(before)
        digits = self.digits
        at = start + len(digits)
        scope = self.scope.copy()
        if not (data.startswith(digits, start) and data.startswith(after, at)):
            at = data.find(b"\r", start, start + 10)
            digits = data[start:at] if at > 0 else b""
            if not (digits.isdigit() and data.startswith(after, at)) or (digits.startswith(b"0") and digits != b"0"):
                return None
            headers = list(scope["headers"])
            headers[self.known.length_at] = (b"content-length", digits)
            scope["headers"] = headers
        at += len(after)
        if len(data) - at != int(digits):
            return None
        return scope, data[at:]


class ClientConnection(asyncio.Protocol):
    """The server's side of one connection. Requests that come while one is being answered wait for their turn.

    Made by uvicorn's server, which counts connections and tasks in `server_state` and calls `shutdown`; whoever runs
    the server calls `expire` now and then. `transport` is `None` once the socket is gone; of the requests,
    `reading` is the one whose body still comes, `answering` the one whose turn it is.
    """

    __slots__ = (
        "_app", "_chunked", "_client", "_closing", "_deadline", "_discarding", "_expects", "_fields", "_head_size", "_in_head",
        "_lines", "_parser", "_paused", "_pipeline", "_refusal", "_said", "_seen", "_server", "_stalled_at", "_state", "_tries", "_upgrading", "_url", "_writable", "answering", "limits",
        "loop", "reading", "transport", "unread_bytes", "write_paused",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
    ) -> None:
        self._app = cast(ASGIApp, config.loaded_app)
        self._state = server_state
        self.loop = _loop or asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self._deadline = _NEVER
        self._stalled_at = _NEVER
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._in_head = False
        self._chunked = False
        self._expects = False
        self._upgrading = False
        self._refusal: tuple[int, str] | None = None
        self._discarding = False
        self._closing = False
        self._paused = False
        self._writable: asyncio.Future[None] | None = None
        self._pipeline: deque[Call] = deque()
        self._said: list[tuple[bytes, bytes]] | None = None
        self._lines: list[bytes] = []
        self._seen: _Seen | None = None
        self._tries = _TRIES
        self.limits = limits
        self.unread_bytes = limits.unread_bytes
        self.answering: Call | None = None
        self.reading: Call | None = None
        self.write_paused = False

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._client = _address(transport.get_extra_info("peername"))
        self._server = _address(transport.get_extra_info("sockname"))
        self._state.connections.add(cast(Any, self))
        self._deadline = self.loop.time() + self.limits.head_s

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        between = not self._in_head and self.reading is None and self.answering is None
        if between:
            if self._seen is not None and (found := self._seen.again(data)) is not None:
                # The parser would say what it said of the same bytes before.
                self._tries = _TRIES
                self._deadline = _NEVER
                scope, body = found
                call = scope[LINE_KEY] = Call(self, scope, keep=True, expects=False, body=body)
                self._start(call)
                return
            # Empty lines before a request may come, but win no time.
            self._deadline = min(self._deadline, self.loop.time() + self.limits.head_s)
        try:
            self._feed(data)
            if between and self._tries:
                self._remember(data)
        except httptools.HttpParserError:
            self._refuse(*(self._refusal or (400, "this is not a well-formed HTTP/1.1 request")))
        else:
            if self._in_head:
                self._head_size += len(data)
                if self._head_size > self.limits.head_bytes:
                    self._refuse(431, "the request's head is too large")

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._deadline = _NEVER
        self._parser = None
        self._state.connections.discard(cast(Any, self))
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        waiting, self._pipeline = self._pipeline, deque()
        waiting.clear()
        if self.reading is not None:
            self.reading.lose()
        if self.answering is not None:
            self.answering.lose()
        self.reading = None

    def pause_writing(self) -> None:
        # Apart from the deadline of what is read, which further requests move.
        self.write_paused = True
        self._stalled_at = self.loop.time() + self.limits.stall_s

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.transport is not None and not self.transport.is_closing():
            self._stalled_at = _NEVER
            if self.answering is None and not self._discarding:
                self._await_request()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._in_head = True
        self._url = b""
        self._fields = []
        self._head_size = 0
        self._chunked = self._expects = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value) + 4
        if self._head_size > self.limits.head_bytes or len(self._fields) >= self.limits.headers:
            self._give_up(431, "the request has too many or too large headers")
        if not self._in_head:
            return  # trailers: nobody needs them, and they must not pass for headers
        name = name.lower()
        if name == b"transfer-encoding":
            self._chunked = True
            if value.strip().lower() != b"chunked":
                self._give_up(501, "Transfer-Encoding can only be chunked here")
        elif name == b"expect" and value.lower() == b"100-continue":
            self._expects = True
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser.get_method() == b"CONNECT":
            self._give_up(400, "there are no tunnels here")
        if parser.should_upgrade():
            self._upgrading = True  # the request begins when its head is read without that wish
            return
        version = parser.get_http_version()
        url = self._url
        if version != "1.1" and (version != "1.0" or self._chunked):
            self._give_up(400, "HTTP/1.1 is spoken here")
        if not url.startswith(b"/") and url != b"*":
            self._give_up(400, "the request names no path of this server")
        self._in_head = False
        self._deadline = self.loop.time() + self.limits.body_s
        raw_path, _, query = url.partition(b"#")[0].partition(b"?")
        path = raw_path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self._server,
            "client": self._client,
            "scheme": "http",
            "root_path": "",
            "method": parser.get_method().decode("ascii"),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._fields,
        }
        call = Call(self, scope, keep=version == "1.1" and parser.should_keep_alive(), expects=self._expects)
        scope[LINE_KEY] = call
        self.reading = call
        if self.answering is None:
            self._start(call)
        else:
            self._pipeline.append(call)
            if len(self._pipeline) >= self.limits.pipelined:
                self.pause_reading()

    def on_body(self, body: bytes) -> None:
        if self.reading is not None:
            self._deadline = self.loop.time() + self.limits.body_s
            self.reading.take(body)

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        call, self.reading = self.reading, None
        self._deadline = _NEVER
        if call is not None:
            call.take_end()

    # What calls use.

    @property
    def default_lines(self) -> list[bytes]:
        """What every answer's head says: the date."""
        headers = self._state.default_headers
        if headers is not self._said:  # there are new ones every second
            self._said = headers
            self._lines = [b"%b: %b" % field for field in headers]
        return self._lines

    async def writable(self) -> None:
        """Until the client has taken most of what was written, or has left."""
        while self.write_paused and self.transport is not None:
            if self._writable is None or self._writable.done():
                self._writable = self.loop.create_future()
            await self._writable

    def pause_reading(self) -> None:
        """Read nothing for now: the kernel, and then the client, hold what comes."""
        if not self._paused and self.transport is not None:
            self._paused = True
            self._deadline = _NEVER
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._paused and self.transport is not None:
            self._paused = False
            if self.reading is not None:
                self._deadline = self.loop.time() + self.limits.body_s
            self.transport.resume_reading()

    def close(self) -> None:
        """Close once the client has taken what was written, for which it has as long as for any answer."""
        if self.transport is not None and not self.transport.is_closing():
            self._deadline = _NEVER
            self._stalled_at = min(self._stalled_at, self.loop.time() + self.limits.stall_s)
            self.transport.close()

    def answered(self, call: Call) -> None:
        """The answer is complete, or will never be."""
        self._state.total_requests += 1
        self.answering = None
        transport = self.transport
        if transport is None or self._closing:
            return
        if call is self.reading:
            self._linger()
        elif not call.keep:
            self.close()
        elif self._pipeline:
            self._start(self._pipeline.popleft())
            self.resume_reading()
        elif self._refusal is not None:
            self._tell(*self._refusal)
        else:
            self.resume_reading()
            if not self.write_paused:
                self._await_request()

    def ended(self, call: Call) -> None:
        """Nobody works on it any more, which may be some time after its answer."""
        self._state.tasks.discard(call.task)

    # What the server calls.

    def shutdown(self) -> None:
        """The server stops: an answer in progress is finished, nothing else is taken."""
        if self.answering is not None:
            self.answering.keep = False
        else:
            self.close()

    def expire(self, now: float) -> None:
        """Close what has taken too long."""
        if self.transport is None:
            return
        if now >= self._stalled_at:
            self.transport.abort()
            return
        if now < self._deadline or (self.write_paused and not self._discarding):
            return  # who takes nothing is not written to either
        if self._in_head and self.answering is None and not self._discarding:
            self._refuse(408, "the request's head did not arrive in time")
        elif self.reading is not None and not self._discarding:
            self._refuse(408, f"the body did not arrive: nothing came for {self.limits.body_s:.0f} seconds")
        elif self._discarding:
            self.transport.abort()
        else:
            self.close()

    def _feed(self, data: bytes) -> None:
        """Parse. A wish to speak something else is ignored, as HTTP allows; the parser would read no body after it."""
        rest: bytes | memoryview = data
        while True:
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = memoryview(rest)[upgrade.args[0] :]
                self._upgrading = False
                method = self._parser.get_method()
                version = self._parser.get_http_version().encode("ascii")
                lines = [b"%b %b HTTP/%b" % (method, self._url, version)]
                lines += [b"%b: %b" % field for field in self._fields if field[0] != b"upgrade"]
                head = b"\r\n".join(lines)
                if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
                    self._refusal = (400, "a header holds a line break")
                    raise httptools.HttpParserError("a header holds a line break") from None
                self._parser = httptools.HttpRequestParser(self)
                self._parser.feed_data(head + b"\r\n\r\n")
            else:
                return

    def _remember(self, data: bytes) -> None:
        """Keep a head that may come again, if these bytes, in which it began, were one whole request of the usual kind."""
        call = self.answering
        if call is None or self._in_head or self.reading is not None or self._pipeline or not call.remarkable:
            return
        self._tries -= 1
        end = data.find(b"\r\n\r\n") + 4
        found = _LENGTH.search(data, 0, end)
        names = [name for name, _ in self._fields]
        if found is None or names.count(b"content-length") != 1 or len(data) - end != int(found[1]):
            return
        if data.count(b"\n", 0, end) == data.count(b"\r", 0, end) == len(names) + 2:
            at = names.index(b"content-length")
            self._seen = _Seen(data[: found.start(1)], found[1], data[found.end(1) : end], call.scope, at)

    def _await_request(self) -> None:
        self._deadline = self.loop.time() + (self.limits.head_s if self._in_head else self.limits.idle_s)

    def _start(self, call: Call) -> None:
        self.answering = call
        call.task = task = self.loop.create_task(call.run(self._app))
        self._state.tasks.add(task)

    def _give_up(self, status: int, why: str) -> None:
        self._refusal = (status, why)
        raise ValueError(why)  # what the parser makes of it is caught where it is fed

    def _refuse(self, status: int, why: str) -> None:
        """Nothing more can be read. Answers to what came before are given first."""
        self._refusal = (status, why)
        self._in_head = False
        reading, self.reading = self.reading, None
        if reading is not None and reading is not self.answering:
            self._pipeline.remove(reading)
        self._discarding = True
        self._deadline = _NEVER  # an answer in progress has its own time
        if reading is not None and reading is self.answering:
            # The body is no body: whoever works on the request is told that nothing more will come.
            if reading.started:
                reading.keep = False
            else:
                self._tell(status, why)
            reading.lose()
        elif self.answering is None:
            self._tell(status, why)

    def _tell(self, status: int, why: str) -> None:
        body = msgspec.json.encode({"error": {"message": why, "type": "invalid_request_error", "code": status}})
        if self.transport is not None:
            self.transport.write(
                b"%b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (STATUS_LINES[status], len(body), body)
            )
            self._linger()

    def _linger(self) -> None:
        """Close, but not before the client had a chance to read the answer: unread bytes would take it down."""
        self._discarding = self._closing = True
        self._deadline = self.loop.time() + self.limits.linger_s
        if self.transport is not None:
            self.resume_reading()
            self.transport.write_eof()


def _address(name: Any) -> tuple[str, int] | None:
    """Who it is, or who we are. On a socket for both, IPv4 comes dressed as IPv6: it is told as what it is."""
    if not isinstance(name, tuple) or len(name) < 2:
        return None
    host = str(name[0])
    if host.startswith("::ffff:") and (mapped := ipaddress.IPv6Address(host.partition("%")[0]).ipv4_mapped):
        host = str(mapped)
    return host, int(name[1])
