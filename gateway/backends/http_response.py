"""Parses one HTTP/1.1 response from bytes as they arrive: head, body, and whether the connection may be kept.

No sockets and no clock. Framing is strict: whatever two parsers could read differently is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import httptools

from hostler.adapters.canonical import ResponseHead
from hostler.gateway.backends.connection_headers import passes

MAX_HEAD = 64 * 1024  # bytes of a response's head, of its trailers, and of framing without any content in between
MAX_HEADERS = 128
MAX_INTERIM = 8

KEEP_S = 2.0  # llama-server closes idle connections after 5 s, so we are earlier
KEEP_MARGIN_S = 1.0

#: How many heads of a connection are remembered while none of them is repeated.
_TRIES = 8
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(0|[1-9][0-9]{0,8})[ \t]*\r\n", re.IGNORECASE)

_KEEP_TIMEOUT = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*(\d{1,9})", re.IGNORECASE)


class MalformedResponse(Exception):
    """The bytes are no response, or only a part of one; the message completes "the backend ..."."""


class ResponseTemplate:
    """The last head of a connection whose response was complete in one piece.

    A response that repeats it byte for byte except for its content length, and is as long as that says, is not parsed
    again.
    """

    __slots__ = ("_after", "_before", "_digits", "_method", "_tries", "fields", "keep_s", "media_type", "status")

    def __init__(self) -> None:
        self._before = self._after = self._digits = b""
        self._method = ""
        self._tries = _TRIES
        self.fields: list[tuple[bytes, bytes]] = []
        self.status = 0
        self.media_type = ""
        self.keep_s = 0.0

    def body(self, method: str, data: bytes) -> bytes | None:
        """The body, if these bytes are exactly one such response."""
        before, after, digits = self._before, self._after, self._digits
        if not before or method != self._method or not data.startswith(before):
            return None
        start = len(before)
        at = start + len(digits)
        if not (data.startswith(digits, start) and data.startswith(after, at)):
            at = data.find(b"\r", start, start + 10)
            digits = data[start:at] if at > 0 else b""
            if not (digits.isdigit() and data.startswith(after, at)) or (digits.startswith(b"0") and digits != b"0"):
                return None
        at += len(after)
        if len(data) - at != int(digits):
            return None
        self._tries = _TRIES
        return data[at:]

    def remember(
        self, method: str, data: bytes, head: ResponseHead, fields: list[tuple[bytes, bytes]], keep_s: float
    ) -> None:
        """Remember these bytes, which are one complete response on a connection that may be kept."""
        if not self._tries or head.length is None or method == "HEAD":
            return
        self._tries -= 1
        end = data.find(b"\r\n\r\n") + 4
        found = _LENGTH.search(data, 0, end)
        lines = len(fields) + 2
        if (
            found is not None
            and len(data) - end == int(found[1]) == head.length
            and data.count(b"\n", 0, end) == data.count(b"\r", 0, end) == lines
        ):
            self._before, self._digits, self._after = data[: found.start(1)], found[1], data[found.end(1) : end]
            self._method, self.fields, self.keep_s = method, fields, keep_s
            self.status, self.media_type = head.status, head.media_type


class ResponseReader:
    """Parses one response. `feed` what arrives, `eof` when the connection ends; both raise `MalformedResponse`.

    `head` is set once the head is complete. `parts` collects the body; its reader empties the list in place.
    `complete`: the body has ended as its framing says. `until_close`: only the connection's end ends it. `keep_s` is
    how long the connection may be idle afterwards; 0 is not at all.
    """

    __slots__ = (
        "_count", "_fields", "_interim", "_method", "_parser", "_quiet", "_refused", "_seen", "_size", "complete", "head",
        "keep_s", "parts", "received", "until_close",
    )  # fmt: skip

    def __init__(self, method: str, seen: ResponseTemplate | None = None) -> None:
        self._method = method
        self._seen = seen
        self._fields: list[tuple[bytes, bytes]] = []
        self._count = 0
        self._size = 0
        self._quiet = 0
        self._interim = 0
        self._refused = ""
        self.received = False
        self.head: ResponseHead | None = None
        self.parts: list[bytes] = []
        self.complete = False
        self.until_close = False
        self.keep_s = 0.0
        self._parser: httptools.HttpResponseParser | None = None

    @property
    def on_body(self) -> object:
        """Looked up once by the parser, so that pieces go straight into the list."""
        return self.parts.append

    def feed(self, data: bytes) -> None:
        """Parse the next bytes."""
        parser = self._parser
        first = parser is None
        if parser is None:
            if self.received:
                self.keep_s = 0.0  # more than one response: nothing on this connection can be trusted any more
                return
            self.received = True
            if data[0] != 72:  # "H": the parser accepts RTSP, and empty lines before the response
                raise MalformedResponse("sent something that is not HTTP")
            seen = self._seen
            if seen is not None and (body := seen.body(self._method, data)) is not None:
                self._fields, self.keep_s, self.complete = seen.fields, seen.keep_s, True
                self.head = ResponseHead(status=seen.status, media_type=seen.media_type, length=len(body))
                if body:
                    self.parts.append(body)
                return
            parser = self._parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.complete:
                raise MalformedResponse(self._refused or f"sent a malformed answer: {error}") from None
            self.keep_s = 0.0
        if self.parts or self.complete:
            self._quiet = 0
        else:
            self._quiet += len(data)
            if self._quiet > 2 * MAX_HEAD:
                raise MalformedResponse("sent headers or framing without end")
        if self.complete:
            self._parser = None
            if first and self.keep_s and self._seen is not None and self.head is not None and not self._interim:
                self._seen.remember(self._method, data, self.head, self._fields, self.keep_s)

    def eof(self) -> None:
        """The connection was closed in an orderly way."""
        if self.complete:
            self.keep_s = 0.0
        elif self.head is not None and self.until_close:
            self.complete = True
            self._parser = None
        else:
            self._parser = None
            raise MalformedResponse(
                "ended its answer in the middle" if self.received else "closed the connection without an answer"
            )

    def close(self) -> None:
        """Drop the parser, which refers back to its reader."""
        self._parser = None

    def headers(self) -> Mapping[str, str]:
        """The headers that may be forwarded, see `BackendResponse.headers`."""
        named = {
            word.strip().lower()
            for name, value in self._fields
            if name.lower() == b"connection"
            for word in value.decode("latin-1").split(",")
        }
        passed: dict[str, str] = {}
        for raw_name, raw_value in self._fields:
            name = raw_name.decode("latin-1").lower()
            if name in named or not passes(name):
                continue
            value = raw_value.decode("latin-1").strip()
            passed[name] = f"{passed[name]}, {value}" if name in passed else value
        return passed

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self.complete:
            self._refuse("sent a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        self._size += len(name) + len(value)
        if self._count > MAX_HEADERS or self._size > MAX_HEAD:
            self._refuse("sent too many or too large headers")
        if self.head is None:  # trailers come after the head and are ignored
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(f"sent HTTP/{version}")
        if not 200 <= status <= 599:
            self._interim += 1
            if not 100 <= status <= 199 or status == 101 or self._interim > MAX_INTERIM:
                self._refuse(f"answered with the unexpected status {status}")
            self._fields.clear()
            return
        media_type, length, chunked, coded, keep_for = "", None, False, False, KEEP_S
        for name, value in self._fields:
            # The parser has refused a second Content-Length, one beside Transfer-Encoding, and one that is no number.
            lower = name.lower()
            if lower == b"content-length":
                length = int(value)
            elif lower == b"content-type":
                media_type = value.decode("latin-1").strip()
            elif lower == b"transfer-encoding":
                coded, chunked = True, not coded and value.strip().lower() == b"chunked"
            elif lower == b"keep-alive" and (found := _KEEP_TIMEOUT.search(value)):
                keep_for = min(keep_for, int(found[1]) - KEEP_MARGIN_S)
        if coded and (not chunked or version == "1.0"):
            self._refuse("sent an unrequested transfer coding")
        bodiless = self._method == "HEAD" or status in (204, 304)
        self.until_close = not (bodiless or chunked or length is not None)
        # llama-server closes the connection after each chunked stream without announcing it.
        if version == "1.1" and not chunked and not self.until_close and self._parser.should_keep_alive():
            self.keep_s = max(0.0, keep_for)
        self.head = ResponseHead(status=status, media_type=media_type, length=0 if status == 204 else length)
        self._count = self._size = 0
        if self._method == "HEAD":
            # The parser has no way to know that no body follows, so it is stopped here.
            self.complete = True
            self._refuse("")

    def on_message_complete(self) -> None:
        if self.head is not None:
            self.complete = True

    def _refuse(self, reason: str) -> None:
        self._refused = reason
        raise MalformedResponse(reason)
