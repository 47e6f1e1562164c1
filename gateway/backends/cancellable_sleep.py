"""Waits of requests that end when the gateway stops: for a machine to wake, a model to load, a rate limit to pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from hostler.adapters.errors import ShuttingDown
from hostler.gateway.context import SHUTTING_DOWN


class CancellableSleeps:
    """All such waits of one gateway."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()
        self._stopped = False

    def stop(self) -> None:
        """End all waits, and every later one at once."""
        self._stopped = True
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Wait inside this context. Raises `ShuttingDown` if the gateway stops, or has stopped."""
        if self._stopped:
            raise ShuttingDown(SHUTTING_DOWN)
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise ShuttingDown(SHUTTING_DOWN)
