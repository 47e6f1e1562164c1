"""ASGI's types, and what the parts of the gateway leave for each other in the scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

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


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers a request. `adapter` is `None` for the gateway's own routes."""

    operation: Operation
    app: ASGIApp
    adapter: Adapter | None = None
