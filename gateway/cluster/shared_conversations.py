"""Which hosts hold which conversations, as the gateways of a cluster tell each other in its store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from hostler.gateway.cluster.membership import Signer
from hostler.gateway.cluster.plausibility import are_plausible, is_past
from hostler.gateway.cluster.shared_log import EVERY_S, LogBatch, SharedLog
from hostler.gateway.cluster.store import Store
from hostler.gateway.conversation_places import LIFETIME_S, AnsweredPrompt, ConversationPlaces

_LOG: Final = "conversations"
#: What the store keeps, in bytes.
_MAX_BYTES: Final = 2 * 1024 * 1024


class SharedConversations:
    """Writes what hosts have answered to requests from here, and reads what other gateways write, both in the background. `run`
    until cancelled. `wall` is a clock that all gateways have in common."""

    def __init__(
        self,
        store: Store,
        signer: Signer,
        own: tuple[str, str],
        places: ConversationPlaces,
        *,
        wall: Callable[[], float],
        every_s: float = EVERY_S,
    ) -> None:
        self._places = places
        self._wall = wall
        self._log = SharedLog(
            store, signer, own, _LOG, max_bytes=_MAX_BYTES, ttl_s=LIFETIME_S, on_batch=self._on_batch, every_s=every_s
        )
        self.run = self._log.run
        places.on_answered = lambda answered: self._log.add(msgspec.json.encode(answered))

    def _on_batch(self, batch: LogBatch) -> None:
        now = self._wall()
        for each in batch.entries:
            try:
                answered = msgspec.json.decode(each, type=AnsweredPrompt)
            except (msgspec.MsgspecError, RecursionError):
                continue
            if is_past(answered.at, now) and are_plausible((answered.model, answered.host)):
                self._places.remember(answered)
