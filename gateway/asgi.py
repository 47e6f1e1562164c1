"""ASGI's types, and the gateway's own keys in the scope."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple

import msgspec

from hostler.adapters.base import Adapter, Operation

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Keys of the scope: the `RouteMatch`, the `Client`, and the `RequestContext` of the request.
ROUTE_KEY = "hostler.route"
CLIENT_KEY = "hostler.client"
CONTEXT_KEY = "hostler.context"

#: Another key: whether the request is background work, which is served while its host has nothing else to do. Only the gateway
#: itself sets it.
BACKGROUND_KEY = "hostler.background"

#: A key of `scope["extensions"]`. Its `notify` takes a callback, which is called once if the client disconnects before the
#: response is complete, immediately if it already has; `None` removes it. Only Hostler's own server provides it: under
#: others a task has to wait in `receive` for the disconnect.
DISCONNECT = "hostler.disconnect"

#: Another key of it: a dictionary shared by all requests of a connection whose heads are identical except for the body's
#: length, to cache what depends on the head alone. `length_at` is the index of that header. `AuthMiddleware` removes the
#: dictionary from a scope that another middleware has changed. Only Hostler's own server provides it.
HEAD = "hostler.head"

#: Another key of it, for requests that ask for WebSocket only. Its `accept` is an `AcceptUpgrade`. Only Hostler's own server
#: provides it.
UPGRADE = "hostler.upgrade"

#: A header that every WebSocket handshake has, and no other request.
UPGRADE_HEADER = "sec-websocket-key"


class ByteStream(NamedTuple):
    """The bytes of a connection in both directions."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


AcceptUpgrade = Callable[[Iterable[tuple[bytes, bytes]]], ByteStream]
"""Answers 101 with these headers and returns the connection. Raises `ConnectionError` if the client has disconnected,
`ConnectionAbortedError` if the server stops."""


class RouteMatch(msgspec.Struct, frozen=True, kw_only=True):
    """The operation and application that a request is routed to. `adapter` is `None` for the gateway's own routes."""

    operation: Operation
    app: ASGIApp
    adapter: Adapter | None = None


def route_path(scope: Scope) -> str:
    """The path below the one that the application is mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path
