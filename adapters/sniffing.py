"""Tells from a response's first bytes what it is, since servers and proxies label JSON and event streams wrongly."""

from __future__ import annotations

import msgspec

from hostler.adapters import sse
from hostler.adapters.canonical import ResponseHead

JSON = "application/json"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b"error:", b":")
_WHITESPACE = b" \t\r\n"
#: Bytes of a start that are held back, at most, before the label decides.
_MAX_HELD = 1024
#: What is never text, whatever its first bytes are.
_BINARY = ("audio/", "image/", "video/")


def without_mark(head: ResponseHead, start: bytes) -> tuple[ResponseHead, bytes]:
    """The head and the first bytes of a response without a byte order mark, which some proxies add."""
    if not start.startswith(_BYTE_ORDER_MARK):
        return head, start
    size = len(_BYTE_ORDER_MARK)
    length = None if head.length is None else head.length - size
    return msgspec.structs.replace(head, length=length), start[size:]


def actual_head(head: ResponseHead, start: bytes) -> ResponseHead:
    """The head with the media type that the first bytes of the response have.

    Returns the same object if the label is right, and for anything but JSON and event streams.
    """
    label = head.media_type
    first = start[:1]
    if label == JSON and first == b"{":
        return head
    if first in _WHITESPACE:
        start = start.lstrip(_WHITESPACE)
        first = start[:1]
    is_stream = label[:17].lower() == sse.MEDIA_TYPE
    if first in (b"{", b"["):
        if not is_stream and "json" in label.lower():
            return head
        return msgspec.structs.replace(head, media_type=JSON)
    if not is_stream and start.startswith(_FIELDS):
        return msgspec.structs.replace(head, media_type=sse.MEDIA_TYPE, length=None)
    return head


class ResponseStart:
    """Holds the start of a response back until its first bytes show what it is, wherever they are cut.

    A stream that has only comments so far is passed on, since they are signs of life; JSON may still follow them.
    """

    __slots__ = ("_head", "_held", "_in_line", "_only_comments", "is_known")

    def __init__(self, head: ResponseHead) -> None:
        self._head = head
        self._held = b""
        self._only_comments = False
        self._in_line = False
        #: Whether nothing that follows can change what the response is.
        self.is_known = False

    def feed(self, data: bytes) -> tuple[ResponseHead | None, bytes]:
        """The head, when it becomes known or turns out to be another one, and the bytes of the response that follow it;
        no bytes as long as they are held back."""
        if self._only_comments:
            return self._after_comments(data)
        held = self._held + data if self._held else data
        if len(held) <= _MAX_HELD and self._is_open(held):
            self._held = held
            return None, b""
        return self._judge(held)

    def finish(self) -> tuple[ResponseHead | None, bytes]:
        """The head and the bytes of a response that has ended before it could be judged."""
        return (None, b"") if self._only_comments else self._judge(self._held)

    def _is_open(self, start: bytes) -> bool:
        """Whether more bytes may change the judgement."""
        if start[:1] in (b"{", b"[") or self._head.media_type.lower().startswith(_BINARY):
            return False
        if len(start) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(start):
            return True
        start = start.removeprefix(_BYTE_ORDER_MARK).lstrip(_WHITESPACE)
        return any(field.startswith(start) and field != start for field in _FIELDS)

    def _judge(self, start: bytes) -> tuple[ResponseHead, bytes]:
        head, start = without_mark(self._head, start)
        self._head, self._held = actual_head(head, start), b""
        if start.lstrip(_WHITESPACE)[:1] != b":":
            self.is_known = True
            return self._head, start
        self._only_comments = True
        changed, rest = self._after_comments(start)
        return changed or self._head, rest

    def _after_comments(self, data: bytes) -> tuple[ResponseHead | None, bytes]:
        at = 0
        for line in data.splitlines(keepends=True):
            if not self._in_line and line.strip() and not line.startswith(b":"):
                self.is_known = True
                if line.lstrip(_WHITESPACE)[:1] not in (b"{", b"["):
                    return None, data
                self._head = msgspec.structs.replace(self._head, media_type=JSON, length=None)
                return self._head, data[at:]
            self._in_line = not line.endswith((b"\n", b"\r"))
            at += len(line)
        return None, data
