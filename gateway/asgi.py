"""ASGI's types, and what the parts of the gateway leave for each other in the scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from hostler.adapters.base import Adapter, Operation

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Who answers the request (a `RouteMatch`), who asks (a `Client`), and the request on its way (an `Exchange`).
ROUTE_KEY = "hostler.route"
CLIENT_KEY = "hostler.client"
CONTEXT_KEY = "hostler.context"

#: A key of `scope["extensions"]`. Its `notify` takes a callback, which is called once if the client disconnects before the
#: response is complete, at once if it has done so already; `None` takes it back. Only our own server offers it: elsewhere
#: a disconnect is learned from `receive`, which takes a task that waits there.
DISCONNECT = "hostler.disconnect"

#: Another key of it: a dictionary that all requests of a connection share whose heads are the same, byte for byte but for
#: the body's length. What follows from the head alone can be kept there. Only our own server offers it, too.
HEAD = "hostler.head"


class RouteMatch(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers a request. `adapter` is `None` for the gateway's own routes."""

    operation: Operation
    app: ASGIApp
    adapter: Adapter | None = None


def route_path(scope: Scope) -> str:
    """The path below the one that the application is mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path
