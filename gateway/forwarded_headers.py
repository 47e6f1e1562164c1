"""Which headers of clients go on to a backend, as its `forward_headers` says: never keys, cookies, or what frames a message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]+\*?")
_NEVER: Final = frozenset(
    {
        *("accept", "accept-encoding", "api-key", "authorization", "connection", "content-encoding", "content-length"),
        *("content-type", "cookie", "expect", "forwarded", "host", "keep-alive", "origin", "proxy-authorization"),
        *(
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "x-api-key",
            "x-real-ip",
            "x-request-id",
        ),
    }
)
#: Words in the names of headers that hold a secret: a star does not stand for them.
_SECRET: Final = re.compile(r"key|token|secret|auth|password|credential")
_NEVER_BEGINS: Final = ("sec-", "x-forwarded-", "x-hostler-")


def forwarded_headers(
    patterns: Iterable[str], headers: Mapping[str, str], taken: Iterable[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """The client's headers that match a pattern, but for those of which `taken` has one already. Names are lower case."""
    own = {name.lower() for name, _ in taken}
    lower = [pattern.lower() for pattern in patterns]
    return tuple(
        (name, value)
        for name, value in headers.items()
        if name not in own and _may_go(name) and any(_matches(pattern, name) for pattern in lower)
    )


def pattern_mistake(pattern: str) -> str | None:
    """What is wrong with an entry of `forward_headers`; `None` if nothing is."""
    if not _PATTERN.fullmatch(pattern):
        return f"{pattern!r} is no name of a header, nor the beginning of one with a star at its end, such as x-team-*"
    if not pattern.endswith("*") and not _may_go(pattern.lower()):
        return f"{pattern} is never passed on; remove it, and set headers of the backend instead"
    return None


def _matches(pattern: str, name: str) -> bool:
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1]) and _SECRET.search(name) is None
    return name == pattern


def _may_go(name: str) -> bool:
    return name not in _NEVER and not name.startswith(_NEVER_BEGINS)
