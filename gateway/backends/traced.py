"""A transport that tells backends which trace their work belongs to. In use only where traces are switched on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import msgspec

from hostler.adapters.protocol import WireRequest
from hostler.gateway.backends.base import Answer, Endpoint, Timeouts, Transport
from hostler.gateway.tracecontext import CURRENT


class TracedTransport:
    """Another transport, with `traceparent` in each request. `told`: whether the other side may know of it."""

    def __init__(self, inner: Transport, clock: Callable[[], float], *, told: bool) -> None:
        self._inner = inner
        self._clock = clock
        self._told = told

    def send(self, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts) -> AbstractAsyncContextManager[Answer]:
        """See `Transport.send`."""
        trace = CURRENT.get()
        if trace is not None:
            headers = trace.call(endpoint.name, self._clock())
            if self._told:
                request = msgspec.structs.replace(request, headers=(*request.headers, *headers))
        return self._inner.send(request, endpoint, timeouts)

    def close_idle(self, endpoint: Endpoint) -> None:
        """See `Transport.close_idle`."""
        self._inner.close_idle(endpoint)

    def close_all(self, endpoint: Endpoint) -> None:
        """See `Transport.close_all`."""
        self._inner.close_all(endpoint)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._inner.aclose()
