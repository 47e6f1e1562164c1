"""Addresses of supervisors that listen on a Unix socket of the same machine: `unix:/run/hostler/supervisor.sock`."""

from __future__ import annotations

_SCHEME = "unix:"

#: What requests over a socket are addressed to.
HOST = "localhost"


def socket_path(url: str) -> str | None:
    """The path of the socket; `None` for an address of another kind."""
    return url.removeprefix(_SCHEME) if url.startswith(_SCHEME) else None
