"""Which headers of an answer are passed on: those of a connection end with it, and some are for the gateway alone."""

from __future__ import annotations

from typing import Final

#: What is said of a connection and not of an answer (RFC 9110, 7.6.1).
OF_CONNECTIONS: Final = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authentication-info", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
#: What backends say that clients of the gateway must not get: it has a length, cookies and rules for browsers of its own.
_OF_BACKENDS: Final = OF_CONNECTIONS | {"content-length", "set-cookie", "set-cookie2", "server"}
_OF_BACKENDS_PREFIXES: Final = ("access-control-", "x-accel-")


def passes(name: str) -> bool:
    """Whether a backend's header of this name, in lower case, is passed on to clients."""
    return name not in _OF_BACKENDS and not name.startswith(_OF_BACKENDS_PREFIXES)
