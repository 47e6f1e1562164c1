"""Open circuits of other gateways, as hints: the next call here becomes a trial, and only that decides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import msgspec

from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.backends.hop import Hop
from hostler.gateway.cluster.announcements import Announcements
from hostler.gateway.events import BreakerChanged, Event

_CHANNEL = "breakers"


class _Hint(msgspec.Struct, frozen=True, array_like=True):
    """The circuit of a backend, or of a model there, is open until a moment."""

    backend: str
    model: str | None
    until: float


class BreakerHints:
    """Announces circuits that open here, and tries what others have announced.

    Backends are the same if they have the same URL: `entries` are the settings of the backends by name. `wall` is a clock
    that all gateways have in common, in seconds since the epoch; hints end with the time for which the circuit is open
    there.
    """

    def __init__(
        self,
        announcements: Announcements,
        hops: Mapping[str, Hop],
        entries: Mapping[str, BackendSettings],
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._announcements = announcements
        self._hops = hops
        self._entries = entries
        self._clock = clock
        self._wall = wall
        self._following = False
        announcements.listen(_CHANNEL, self._on_message)

    def on_event(self, event: Event) -> None:
        """A circuit has changed here."""
        if not isinstance(event, BreakerChanged) or event.state != "open" or self._following:
            return
        entry, hop = self._entries.get(event.backend), self._hops.get(event.backend)
        if entry is None or hop is None:
            return
        backend = _id(entry)
        breaker = hop.breakers.host if event.model is None else hop.breakers.models.get(event.model)
        seconds = 0.0 if breaker is None else breaker.retry_in(self._clock())
        if seconds > 0:
            self._announcements.send(_CHANNEL, _Hint(backend, event.model, self._wall() + seconds))

    def _on_message(self, _: str, message: bytes) -> None:
        try:
            hint = msgspec.json.decode(message, type=_Hint)
        except (msgspec.MsgspecError, RecursionError):
            return
        if hint.until <= self._wall():
            return
        self._following = True
        try:
            for name, entry in self._entries.items():
                if name in self._hops and _id(entry) == hint.backend:
                    # Open until now: the next call is a trial, and the others wait for its result.
                    self._hops[name].breakers.follow(hint.model, "open", self._clock(), 0.0)
        finally:
            self._following = False


def _id(entry: BackendSettings) -> str:
    return hashlib.sha256(entry.shown_url.encode()).hexdigest()[:16]
