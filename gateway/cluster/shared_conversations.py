"""Which hosts hold which conversations, as the gateways of a cluster tell each other in its store."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b
from typing import Final

import msgspec

from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.cluster.membership import Signer
from hostler.gateway.cluster.plausibility import are_plausible, is_past
from hostler.gateway.cluster.shared_log import EVERY_S, LogBatch, SharedLog
from hostler.gateway.cluster.store import Store
from hostler.supervisor.contract import PromptIdentity

_LOG: Final = "conversations"
#: How long a host is believed to hold a conversation after its last answer, in seconds.
_LIFETIME_S: Final = 6 * 3600
#: What the store keeps, and how many conversations a gateway remembers.
_MAX_BYTES, _MAX_KNOWN = 2 * 1024 * 1024, 20_000


class _Answered(msgspec.Struct, frozen=True, array_like=True):
    """A host has answered a prompt, whose end is `mark`."""

    mark: int
    model: str
    host: str
    at: float


class SharedConversations:
    """See `ConversationHints`. Writes what hosts have answered to requests from here, and reads what other gateways write,
    both in the background. `run` until cancelled.

    Hosts are the same if they have the same URL: `entries` are the settings of the backends by name. The store gets hashes
    with the `secret` of the cluster, from which no prompt can be guessed. `wall` is a clock that all gateways have in common.
    """

    def __init__(
        self,
        store: Store,
        signer: Signer,
        own: tuple[str, str],
        entries: Mapping[str, BackendSettings],
        *,
        secret: bytes,
        wall: Callable[[], float],
        every_s: float = EVERY_S,
    ) -> None:
        self._entries = entries
        self._secret = secret
        self._wall = wall
        self._known: OrderedDict[tuple[int, str], tuple[str, float]] = OrderedDict()
        self._log = SharedLog(
            store, signer, own, _LOG, max_bytes=_MAX_BYTES, ttl_s=_LIFETIME_S, on_batch=self._on_batch, every_s=every_s
        )
        self.run = self._log.run

    def answered(self, backend: str, model: str, prompt: PromptIdentity) -> None:
        """See `ConversationHints`."""
        entry = self._entries.get(backend)
        if entry is None or not prompt.marks:
            return
        answered = _Answered(self._hidden(prompt.marks[-1][0]), model, self._host(entry), self._wall())
        self._remember(answered)
        self._log.add(msgspec.json.encode(answered))

    def find(self, model: str, prompt: PromptIdentity, backends: Collection[str]) -> tuple[str, int] | None:
        """See `ConversationHints`."""
        if not self._known:
            return None
        names = {self._host(entry): name for name in backends if (entry := self._entries.get(name)) is not None}
        since = self._wall() - _LIFETIME_S
        for mark, size in reversed(prompt.marks):
            host, at = self._known.get((self._hidden(mark), model), ("", 0.0))
            if host in names and at > since:
                return names[host], size
        return None

    def _on_batch(self, batch: LogBatch) -> None:
        now = self._wall()
        for each in batch.entries:
            try:
                answered = msgspec.json.decode(each, type=_Answered)
            except (msgspec.MsgspecError, RecursionError):
                continue
            if is_past(answered.at, now) and are_plausible((answered.model, answered.host)):
                self._remember(answered)

    def _remember(self, answered: _Answered) -> None:
        key = answered.mark, answered.model
        if answered.at < self._known.get(key, ("", 0.0))[1]:
            return
        self._known[key] = answered.host, answered.at
        self._known.move_to_end(key)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def _hidden(self, mark: int) -> int:
        """A mark that only gateways of the cluster can compute. JavaScript and Lua could read it as a number, too."""
        return int.from_bytes(blake2b(mark.to_bytes(8), key=self._secret, digest_size=6).digest())

    def _host(self, entry: BackendSettings) -> str:
        return hashlib.sha256(self._secret + entry.shown_url.encode()).hexdigest()[:16]
