"""Slows down whoever guesses keys. Counts addresses; refuses nobody itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from hostler.adapters.errors import Busy, GatewayError, Unauthenticated


class FailureThrottle:
    """Slows down whoever guesses keys: after `limit` wrong ones within `window_s`, an address waits. Bounded memory."""

    def __init__(
        self, clock: Callable[[], float], *, limit: int = 200, window_s: float = 60.0, remember: int = 4096
    ) -> None:
        self._clock = clock
        self._limit = limit
        self._window_s = window_s
        self._remember = remember
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def failed(self, address: str) -> float:
        """Count a failure. Returns the seconds to wait, 0 while within the limit."""
        now = self._clock()
        since, count = self._failures.pop(address, (now, 0))
        if now - since > self._window_s:
            since, count = now, 0
        self._failures[address] = (since, count + 1)
        if len(self._failures) > self._remember:
            self._failures.popitem(last=False)
        return 0.0 if count < self._limit else self._window_s - (now - since)

    def refusal(self, address: str, words: str) -> GatewayError:
        """Count a failure; the error that it deserves."""
        wait_s = self.failed(address)
        if wait_s:
            return Busy("too many wrong keys from this address; wait, then use a valid one", retry_after_s=wait_s)
        return Unauthenticated(words)
