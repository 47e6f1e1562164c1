"""ASGI's types, and what the parts of the gateway leave for each other in the scope."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

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

#: The client's end of the request (a `Line`).
LINE_KEY = "hostler.line"

#: What is known of a head that has come on this connection before (a `KnownHead`); missing for any other.
KNOWN_KEY = "hostler.known"

#: Headers that every answer to this request carries: lines without their end, names in lower case.
HEADERS_KEY = "hostler.headers"


class KnownHead:
    """A request's head that comes again and again on one connection, the same bytes but for the body's length.

    What follows from the head alone is found out once: `admitted` belongs to `Security`, `told` to `Edge`. `length_at`
    is the place of `content-length` among the headers.
    """

    __slots__ = ("admitted", "length_at", "told")

    def __init__(self, length_at: int) -> None:
        self.length_at = length_at
        self.admitted: Any = None
        self.told: Any = None


class Line(Protocol):
    """A request's way to its client beyond ASGI: what is known without a task that waits, and writing without one."""

    @property
    def task(self) -> asyncio.Task[None]:
        """The request's own task."""
        ...

    @property
    def paused(self) -> bool:
        """Whether the client takes less than it is given: who goes on writing fills our memory."""
        ...

    async def writable(self) -> None:
        """Until the client has taken most of what was written, or has left."""
        ...

    def begin(self, status: int, lines: Sequence[bytes], *, length: int | None, closes: bool = False) -> None:
        """The answer's head: the header lines without their ends, names in lower case; none for framing or `connection`.

        It goes out with the first `put`, which must follow at once. `length` is the body's, if it is known; with `closes`
        the connection ends with the answer.
        """
        ...

    def put(self, body: bytes, more: bool) -> None:
        """Write the next piece of the body; the last one if there is not `more`. To nobody, once the client has left."""
        ...

    def whole_body(self) -> bytes | None:
        """The whole body if it is here by now, which ends reading; else `None`, and `receive` gives it."""
        ...

    def on_leaving(self, callback: Callable[[], None] | None) -> None:
        """Call this once if the client leaves before the answer is complete, at once if it has left. `None` takes it back."""
        ...


class RouteMatch(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers a request. `adapter` is `None` for the gateway's own routes."""

    operation: Operation
    app: ASGIApp
    adapter: Adapter | None = None
