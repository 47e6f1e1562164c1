"""The gateway's events and the bus that delivers them. Publishing never waits and never raises."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable

import msgspec

from hostler.supervisor.scheduling.events import DevicesChanged as DevicesChanged
from hostler.supervisor.scheduling.events import EngineChanged as EngineChanged
from hostler.supervisor.scheduling.events import HostChanged as HostChanged
from hostler.supervisor.scheduling.events import QueueChanged as QueueChanged
from hostler.supervisor.scheduling.events import SwitchChanged as SwitchChanged
from hostler.supervisor.scheduling.events import Waiting as Waiting

logger = logging.getLogger(__name__)


class AttemptOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at a backend. `outcome`: see "Outcomes and reasons" in docs/operations.md."""

    backend: str
    outcome: str
    seconds: float


class HopOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """A backend that did not serve a request: the outcome of its last attempt, or why it was skipped."""

    backend: str
    reason: str


class RequestFinished(msgspec.Struct, frozen=True, kw_only=True, tag="request"):
    """A finished request. Times in seconds, `at` since the epoch, `cost` in US dollars; no contents, no keys.

    `outcome` is a `RequestOutcome`. `reason` says why this backend served it, or what went wrong; `code` is the error's
    code. `client` is the name of the key, or an address. `gateway` is the name of the one that served it, in a cluster.
    """

    id: str
    at: float
    protocol: str
    operation: str
    client: str
    outcome: str
    status: int
    seconds: float
    model: str | None = None
    requested_model: str | None = None
    backend: str | None = None
    hop: int = 0
    reason: str = ""
    code: str = ""
    queue_s: float = 0.0
    switch_s: float = 0.0
    first_token_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    streamed: bool = False
    attempts: tuple[AttemptOutcome, ...] = ()
    failed_hops: tuple[HopOutcome, ...] = ()
    cost: float | None = None
    gateway: str | None = None


class FinishedElsewhere(msgspec.Struct, frozen=True, kw_only=True, tag="elsewhere"):
    """Another gateway of the cluster has finished a request."""

    request: RequestFinished


class BreakerChanged(msgspec.Struct, frozen=True, kw_only=True, tag="breaker"):
    """The circuit breaker of a backend (`model` is `None`), or of one model there, changed its state."""

    backend: str
    model: str | None
    state: str
    previous: str


class ModelsChanged(msgspec.Struct, frozen=True, kw_only=True, tag="models"):
    """A backend without a supervisor has other models than before; `models` is their number."""

    backend: str
    models: int


Event = (
    RequestFinished
    | FinishedElsewhere
    | BreakerChanged
    | ModelsChanged
    | HostChanged
    | EngineChanged
    | SwitchChanged
    | DevicesChanged
    | QueueChanged
)


class Subscription:
    """A bounded queue of events; a slow reader loses the oldest ones, counted in `lost`."""

    def __init__(self, size: int) -> None:
        self._events: deque[Event] = deque(maxlen=size)
        self._changed = asyncio.Event()
        self.closed = False
        self.lost = 0

    def put(self, event: Event) -> None:
        if len(self._events) == self._events.maxlen:
            self.lost += 1
        self._events.append(event)
        self._changed.set()

    def close(self) -> None:
        self.closed = True
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            while self._events:
                yield self._events.popleft()
            if self.closed:
                return
            self._changed.clear()
            await self._changed.wait()


class Bus:
    """Delivers events to listeners, which are called at once, and to subscriptions, which are read later."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Event], None]] = []
        self._subscriptions: set[Subscription] = set()

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` for every event from now on. It must be quick; exceptions are logged."""
        self._listeners.append(listener)

    def subscribe(self, size: int = 1000) -> Subscription:
        subscription = Subscription(size)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        subscription.close()

    def publish(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("unhandled exception in a listener of %s", type(event).__name__)
        for subscription in self._subscriptions:
            subscription.put(event)

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in self._subscriptions:
            subscription.close()


def printable(text: str, limit: int = 300) -> str:
    """Untrusted text for a log or a message: one line, no control characters, bounded."""
    if len(text) <= limit and text.isprintable():
        return text
    clean = "".join(character if character.isprintable() else "?" for character in text[:limit])
    return clean + ("…" if len(text) > limit else "")
