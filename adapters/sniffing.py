"""Tells from a response's first bytes what it is, since servers and proxies label JSON and event streams wrongly."""

from __future__ import annotations

import msgspec

from hostler.adapters import sse
from hostler.adapters.canonical import ResponseHead

JSON = "application/json"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b"error:", b":")
_WHITESPACE = b" \t\r\n"


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
