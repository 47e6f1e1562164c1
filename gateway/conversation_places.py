"""Where conversations were last answered, as far as this process has seen or heard of it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b
from itertools import islice
from typing import Final

import msgspec

from hostler.gateway.backend_settings import BackendSettings
from hostler.supervisor.contract import PromptIdentity

#: How long a host is believed to hold a conversation after its last answer, in seconds.
LIFETIME_S: Final = 6 * 3600
#: Conversations that are remembered.
_MAX_KNOWN: Final = 20_000


class AnsweredPrompt(msgspec.Struct, frozen=True, array_like=True):
    """A host has answered a prompt, whose end is `mark`: hashes with a secret. `at` is in seconds since the epoch."""

    mark: int
    model: str
    host: str
    at: float


class ConversationPlaces:
    """See `ConversationHints`. Hosts are the same if they have the same URL: `entries` are the settings of the backends by
    name. What is passed on are hashes keyed with the `secret`, by which alone a guessed prompt can be checked. `wall` is a
    clock that all who pass it on have in common."""

    def __init__(self, entries: Mapping[str, BackendSettings], *, secret: bytes, wall: Callable[[], float]) -> None:
        self._entries = entries
        self.secret = secret
        self._wall = wall
        self._known: OrderedDict[tuple[int, str], AnsweredPrompt] = OrderedDict()
        #: Called with what was answered to a request of this gateway, and with all that is remembered.
        self.on_answered: Callable[[AnsweredPrompt], None] = _ignore
        self.on_remembered: Callable[[AnsweredPrompt], None] = _ignore

    def answered(self, backend: str, model: str, prompt: PromptIdentity) -> None:
        """See `ConversationHints`."""
        entry = self._entries.get(backend)
        if entry is not None and prompt.marks:
            self.add(AnsweredPrompt(self._hidden(prompt.marks[-1][0]), model, self._host(entry), self._wall()))

    def add(self, answered: AnsweredPrompt) -> None:
        """A request of this gateway was answered, here or in another one of its processes."""
        self.remember(answered)
        self.on_answered(answered)

    def remember(self, answered: AnsweredPrompt) -> None:
        """Something was answered here or elsewhere."""
        key = answered.mark, answered.model
        known = self._known.get(key)
        if known is not None and answered.at <= known.at:
            return
        self._known[key] = answered
        self._known.move_to_end(key)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        self.on_remembered(answered)

    def latest(self, count: int) -> tuple[AnsweredPrompt, ...]:
        """What was remembered last, the oldest first."""
        return tuple(reversed([*islice(reversed(self._known.values()), count)]))

    def find(self, model: str, prompt: PromptIdentity, backends: Collection[str]) -> tuple[str, int] | None:
        """See `ConversationHints`."""
        if not self._known:
            return None
        names = {self._host(entry): name for name in backends if (entry := self._entries.get(name)) is not None}
        since = self._wall() - LIFETIME_S
        for mark, size in reversed(prompt.marks):
            known = self._known.get((self._hidden(mark), model))
            if known is not None and known.host in names and known.at > since:
                return names[known.host], size
        return None

    def _hidden(self, mark: int) -> int:
        """A mark that only those with the secret can compute."""
        return int.from_bytes(blake2b(mark.to_bytes(8), key=self.secret, digest_size=6).digest())

    def _host(self, entry: BackendSettings) -> str:
        return hashlib.sha256(self.secret + entry.shown_url.encode()).hexdigest()[:16]


def _ignore(_: AnsweredPrompt) -> None:
    pass
