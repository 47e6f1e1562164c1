"""Those who wait between two attempts, so that they are not kept when the gateway stops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from hostler.adapters.errors import Stopping
from hostler.gateway.exchange import NO_MORE


class Pauses:
    """The pauses that requests make on their way along the chain: for a machine to wake, a model to load, a limit to pass."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()
        self._stopping = False

    def stop(self) -> None:
        """End all of them, and let nobody begin another one."""
        self._stopping = True
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A pause, as long as the context lasts. Raises `Stopping` if the gateway stops meanwhile, or is about to."""
        if self._stopping:
            raise Stopping(NO_MORE)
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise Stopping(NO_MORE)
