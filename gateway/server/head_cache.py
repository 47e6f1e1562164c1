"""Caches the last head of a connection, so that a repeated head, which most clients send, is not parsed again.

This saves a sixth of the CPU of a small whole answer (102 µs instead of 122, without system calls). It is optional.
"""

from __future__ import annotations

import re
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from hostler.gateway.asgi import HEAD

if TYPE_CHECKING:
    from uvicorn._types import HTTPScope

#: Heads that are remembered on a connection before the cache is given up, if none of them is repeated.
_TRIES = 8
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(0|[1-9][0-9]{0,8})[ \t]*\r\n", re.IGNORECASE)


class HeadCache:
    """The last head of a connection.

    A request matches if its bytes are the same except for the digits of `Content-Length`, and its body is complete.
    """

    __slots__ = ("_after", "_before", "_digits", "_length_at", "_scope", "_tries")

    def __init__(self) -> None:
        self._tries = _TRIES
        self._before = self._digits = self._after = b""
        self._length_at = 0
        self._scope: Any = {}

    def match(self, data: bytes) -> tuple[HTTPScope, bytes] | None:
        """The scope and the body, if these bytes are exactly one matching request."""
        before, digits, after = self._before, self._digits, self._after
        if not before or not data.startswith(before):
            return None
        start = len(before)
        end = start + len(digits)
        scope: HTTPScope = self._scope.copy()
        scope["state"] = scope["state"].copy()
        scope["headers"] = headers = list(scope["headers"])  # which middleware may change
        if not (data.startswith(digits, start) and data.startswith(after, end)):
            end = data.find(b"\r", start, start + 10)
            digits = data[start:end] if end > 0 else b""
            if not (digits.isdigit() and data.startswith(after, end)) or (digits.startswith(b"0") and digits != b"0"):
                return None
            headers[self._length_at] = (b"content-length", digits)
        end += len(after)
        if len(data) - end != int(digits):
            return None
        self._tries = _TRIES
        return scope, data[end:]

    def remember(self, data: bytes, scope: HTTPScope) -> None:
        """Remember the head of these bytes if they are exactly one request with a `Content-Length`."""
        if not self._tries:
            return
        self._tries -= 1
        end = data.find(b"\r\n\r\n") + 4
        found = _LENGTH.search(data, 0, end)
        names = list(map(itemgetter(0), scope["headers"]))
        if found is None or names.count(b"content-length") != 1 or len(data) - end != int(found[1]):
            return
        if data.count(b"\n", 0, end) == data.count(b"\r", 0, end) == len(names) + 2:
            self._before, self._digits, self._after = data[: found.start(1)], found[1], data[found.end(1) : end]
            self._length_at = names.index(b"content-length")
            self._scope = {
                **scope,
                "headers": list(scope["headers"]),
                "extensions": {HEAD: {"length_at": self._length_at}},
            }
