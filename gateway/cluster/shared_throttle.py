"""Invalid API keys, counted over all gateways of a cluster. Addresses travel as hashes."""

from __future__ import annotations

import hmac
from collections import Counter

import anyio
import msgspec

from hostler.gateway.auth.middleware import WRONG_KEYS, KeyThrottle
from hostler.gateway.cluster.announcements import Announcements

_CHANNEL = "wrong-keys"
#: How often other gateways are told, in seconds.
_EVERY_S = 0.1


class SharedThrottle:
    """Has a throttle count what others count. `secret` keeps the hashes of addresses from being found by trying them all."""

    def __init__(self, throttle: KeyThrottle, announcements: Announcements, secret: bytes) -> None:
        self._throttle = throttle
        self._announcements = announcements
        self._secret = secret
        self._counted: Counter[str] = Counter()
        self._wake = anyio.Event()
        throttle.peers = self
        announcements.listen(_CHANNEL, self._on_message)

    def failed(self, address: str) -> str:
        """An invalid key came from an address: the name under which it counts."""
        name = hmac.digest(self._secret, address.encode("utf-8", "surrogateescape"), "sha256").hex()
        self._counted[name] += 1
        self._wake.set()
        return name

    async def run(self) -> None:
        """Tell the others until cancelled."""
        while True:
            await self._wake.wait()
            await anyio.sleep(_EVERY_S)
            self._wake = anyio.Event()
            counted, self._counted = self._counted, Counter()
            self._announcements.send(_CHANNEL, counted)

    def _on_message(self, _: str, message: bytes) -> None:
        try:
            counted = msgspec.json.decode(message, type=dict[str, int])
        except (msgspec.MsgspecError, RecursionError):
            return
        for name, failures in counted.items():
            self._throttle.count(name, min(max(0, failures), WRONG_KEYS))
