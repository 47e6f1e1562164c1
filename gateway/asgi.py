"""ASGI's types, and what the parts of the gateway leave for each other in the scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import msgspec

from hostler.adapters.protocol import Adapter, Operation

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Who answers the request (a `Claim`), who asks (a `Client`), and the request on its way (an `Exchange`).
CLAIM_KEY = "hostler.claim"
CLIENT_KEY = "hostler.client"
EXCHANGE_KEY = "hostler.exchange"

#: The client's end of the request (a `Line`).
LINE_KEY = "hostler.line"


class Line(Protocol):
    """What the server tells about a request beyond ASGI, without a task that waits for it."""

    def whole_body(self) -> bytes | None:
        """The whole body if it is here by now, which ends reading; else `None`, and `receive` gives it."""
        ...

    def on_leaving(self, callback: Callable[[], None] | None) -> None:
        """Call this once if the client leaves before the answer is complete, at once if it has left. `None` takes it back."""
        ...


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers a request. `adapter` is `None` for the gateway's own routes."""

    operation: Operation
    app: ASGIApp
    adapter: Adapter | None = None
