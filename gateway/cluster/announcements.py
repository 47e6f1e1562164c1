"""Messages between the gateways of a cluster: signed, sent together in the background, and lost without harm."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio
import msgspec

from hostler.gateway.cluster.membership import Signer
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, Store, StoreAway

#: Messages that wait to be sent, at most; the oldest are dropped first.
_MAX_WAITING = 1000


class _Envelope(msgspec.Struct, frozen=True, array_like=True):
    sender: str
    content: msgspec.Raw


class Announcements:
    """Sends to all other gateways of the cluster that are connected. `run` until cancelled."""

    def __init__(self, store: Store, signer: Signer, own: str) -> None:
        self._store = store
        self._signer = signer
        self._own = own
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=_MAX_WAITING)
        self._wake = anyio.Event()
        #: How many messages this gateway has sent.
        self.sent = 0

    @property
    def connected(self) -> bool:
        """Whether messages are sent at all."""
        return self._store.connected

    def listen(self, channel: str, listener: Callable[[str, bytes], None]) -> None:
        """Call `listener` with the sender's id and each message of a channel. To be called before `run`."""

        def on_message(message: bytes) -> None:
            envelope = self._signer.decoded(message, _Envelope)
            if envelope is not None and envelope.sender != self._own:
                listener(envelope.sender, bytes(envelope.content))

        self._store.subscribe(channel, on_message)

    def send(self, channel: str, message: object) -> None:
        """Send a value, soon; while the store is away nothing is sent."""
        if self.connected:
            content = msgspec.json.encode(_Envelope(self._own, msgspec.Raw(msgspec.json.encode(message))))
            self._waiting.append((channel, self._signer.signed(content)))
            self.sent += 1
            self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            while self._waiting:
                channel, message = self._waiting.popleft()
                try:
                    await self._store.execute(
                        "PUBLISH", self._store.prefix + channel, message, limit_s=BACKGROUND_LIMIT_S
                    )
                except StoreAway:
                    self._waiting.clear()
