"""What whoever guesses keys is told."""

from __future__ import annotations

from hostler.adapters.errors import Busy, GatewayError, Unauthenticated
from hostler.supervisor.throttle import Throttle

#: Wrong keys within a minute after which an address waits. Many clients may stand behind one address.
WRONG_KEYS = 200


class FailureThrottle(Throttle):
    """Slows down whoever guesses keys, and says so."""

    def refusal(self, address: str, words: str) -> GatewayError:
        """Count a failure; the error that it deserves."""
        wait_s = self.failed(address)
        if wait_s:
            return Busy("too many wrong keys from this address; wait, then use a valid one", retry_after_s=wait_s)
        return Unauthenticated(words)
