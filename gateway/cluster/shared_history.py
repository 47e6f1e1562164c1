"""Past requests of all gateways of a cluster, in the history of each of them: figures, no contents."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from hostler.gateway.cluster.membership import Signer
from hostler.gateway.cluster.plausibility import is_past, is_plausible
from hostler.gateway.cluster.shared_log import EVERY_S, LogBatch, SharedLog
from hostler.gateway.cluster.store import Store
from hostler.gateway.events import Bus, FinishedElsewhere, RequestFinished, printable
from hostler.gateway.telemetry.history import History

logger = logging.getLogger(__name__)

_LOG: Final = "history"
#: What the store keeps: about as many requests as a gateway does, for a month.
_MAX_BYTES, _TTL_S = 8 * 1024 * 1024, 31 * 24 * 3600
#: The size of a request, in bytes, at most.
_MAX_ENTRY: Final = 16 * 1024
#: Requests that ended longer ago than this are no news, in seconds.
_NEWS_S: Final = 60.0


class SharedHistory:
    """Writes what the history gets to the cluster's store, and adds what other gateways have written. `run` until cancelled."""

    def __init__(
        self,
        store: Store,
        signer: Signer,
        own: tuple[str, str],
        history: History,
        bus: Bus,
        *,
        wall: Callable[[], float],
        every_s: float = EVERY_S,
    ) -> None:
        self._history = history
        self._bus = bus
        self._wall = wall
        self._log = SharedLog(
            store, signer, own, _LOG, max_bytes=_MAX_BYTES, ttl_s=_TTL_S, on_batch=self._on_batch, every_s=every_s
        )
        history.peers = self

    def added(self, request: bytes) -> None:
        """A request was added to the history here."""
        if len(request) <= _MAX_ENTRY:
            self._log.add(request)

    async def run(self) -> None:
        """Write and read until cancelled."""
        self._log.go_on_at(await self._history.position(_LOG))
        await self._log.run()

    def _on_batch(self, batch: LogBatch) -> None:
        name, now = printable(batch.name, 100), self._wall()
        requests = [found for each in batch.entries if (found := _request(each, name, now)) is not None]
        if len(requests) < len(batch.entries):
            logger.warning("ignored %d past requests of gateway %s: damaged", len(batch.entries) - len(requests), name)
        self._history.take_over(requests, _LOG, self._log.position)
        for request in requests:
            if now - request.at < _NEWS_S:
                self._bus.publish(FinishedElsewhere(request=request))


def _request(entry: msgspec.Raw, gateway: str, now: float) -> RequestFinished | None:
    """A request of another gateway; `None` if it is not as a gateway would have written it."""
    if len(bytes(entry)) > _MAX_ENTRY:
        return None
    try:
        request = msgspec.json.decode(entry, type=RequestFinished)
    except (msgspec.MsgspecError, RecursionError):
        return None
    if not (is_past(request.at, now) and is_plausible(request)):
        return None
    return msgspec.structs.replace(request, gateway=gateway)
