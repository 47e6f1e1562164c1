"""The seam between the gateway and whatever carries bytes to a backend: values, and what a transport promises.

No protocol, no model and no retry policy here: a transport takes a ready request and gives back the answer's bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from hostler.adapters.base import Upstream, WireRequest
from hostler.adapters.types import ResponseHead


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a backend listens. `name` is its name in the configuration, the only thing that errors tell of it.

    `key` is sent as a bearer token. `base_path` goes before every request's path: empty, or `/like/this`.
    """

    host: str
    port: int
    name: str
    key: str | None = None
    tls: bool = False
    base_path: str = ""


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait, in seconds. There is no limit on the whole.

    `first_byte_s` counts once until the answer's head is there and once more until its body begins (an engine sends
    the head when it starts to read the prompt); it also bounds each standstill while the request is being sent.
    `between_bytes_s` counts only while somebody waits for bytes: a slow reader is not a slow backend.
    """

    connect_s: float = 2.0
    first_byte_s: float = 300.0
    between_bytes_s: float = 120.0


class Answer(Protocol):
    """A backend's answer, from its head on. Valid inside the context that gave it."""

    @property
    def head(self) -> ResponseHead:
        """Status, media type with its parameters, and the body's length where it was told."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that may be passed on, names in lower case, several of one name joined by commas.

        What belongs to one connection (`Connection`, `Transfer-Encoding`, ...), `Content-Length`, `Set-Cookie`, `Server`,
        `Access-Control-*` and `X-Accel-*` has been taken out.
        """
        ...

    @property
    def until_close(self) -> bool:
        """Whether only the end of the connection ends the body, so that a cut answer looks like a complete one."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the whole body has arrived (it may not have been read yet)."""
        ...

    def segments(self) -> AsyncIterator[bytes]:
        """The body as it arrives, never empty pieces. Ends normally only if the body is complete.

        Raises `BackendTimeout` after too long a silence and `BackendBroken` if the answer ends in the middle; what had
        arrived before is given out first.
        """
        ...

    async def read(self, limit: int) -> bytes:
        """The rest of the body, at most `limit` bytes of it: what is longer is cut, without an error."""
        ...


class Transport(Protocol):
    """Carries requests to backends. One per gateway; used from one event loop."""

    def send(self, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts) -> AbstractAsyncContextManager[Answer]:
        """Sends the request; inside the context, the answer's head is there.

        Leaving the context before the body is complete closes the connection at once, so that the backend stops working
        for nobody. Answers of every status are given out as they are, redirects too.

        Raises `BackendUnavailable` if nothing of the request can have been worked on, `BackendTimeout`, `BackendBroken`,
        and `BadRequest` for a request that cannot be put on the wire.
        """
        ...

    def close_idle(self, endpoint: Endpoint) -> None:
        """Closes the kept connections to this address that carry no request now."""
        ...

    def close_all(self, endpoint: Endpoint) -> None:
        """Closes every connection to this address; requests on them end as `BackendBroken`. For an engine about to stop."""
        ...

    async def aclose(self) -> None:
        """Closes everything and returns when it is closed. Requests on their way end as `BackendBroken`."""
        ...


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """How a backend is spoken to. `endpoint` is `None` where a lease tells it.

    `folds`: whole answers are asked for as streams and folded here. llama.cpp's server notices that the client of a
    whole answer has left only when nothing else happens; a stream it stops within a token. `headers` go with every
    request.
    """

    name: str
    upstream: Upstream
    transport: Transport
    timeouts: Timeouts
    endpoint: Endpoint | None = None
    folds: bool = False
    headers: tuple[tuple[str, str], ...] = ()
