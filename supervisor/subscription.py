"""What happens on a host, for any number of listeners, none of which can slow it down."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from hostler.supervisor.contract import Snapshot, SupervisorEvent

#: Events that wait for one listener; one that is slower gets a fresh snapshot instead of them.
WAITING_EVENTS: Final = 256


class Subscriptions:
    """All listeners of one host. `snapshot` says how everything is now."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._listeners: set[_Subscription] = set()
        self._taps: list[Callable[[SupervisorEvent], None]] = []

    def __len__(self) -> int:
        return len(self._listeners)

    def publish(self, event: SupervisorEvent) -> None:
        """Hand an event to everybody; never waits, never fails."""
        for tap in self._taps:
            tap(event)
        for listener in self._listeners:
            listener.offer(event)

    def tap(self, listener: Callable[[SupervisorEvent], None]) -> None:
        """Call `listener` with every single event from now on. It must be quick, and must not fail."""
        self._taps.append(listener)

    @contextmanager
    def open(self) -> Iterator[AsyncIterator[SupervisorEvent]]:
        """One more listener, as long as the context lasts. Its first event is a snapshot."""
        listener = _Subscription(self._snapshot)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)


class _Subscription:
    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._waiting: deque[SupervisorEvent] = deque()
        self._behind = True
        self._more = anyio.Event()

    def offer(self, event: SupervisorEvent) -> None:
        if not self._behind:
            self._waiting.append(event)
            if len(self._waiting) > WAITING_EVENTS:
                self._waiting.clear()
                self._behind = True
        self._more.set()

    def __aiter__(self) -> _Subscription:
        return self

    async def __anext__(self) -> SupervisorEvent:
        while not self._behind and not self._waiting:
            self._more = anyio.Event()
            await self._more.wait()
        if self._behind:
            self._behind = False
            return self._snapshot()
        return self._waiting.popleft()
