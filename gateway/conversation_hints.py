"""Which host may hold a conversation that none of them says it has answered: what other gateways have seen."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import msgspec

from hostler.supervisor.contract import PromptIdentity
from hostler.supervisor.scheduling.views import HostOffer


class ConversationHints(Protocol):
    """Hints may be wrong: a host that has lost the conversation reads its prompt again."""

    def answered(self, backend: str, model: str, prompt: PromptIdentity) -> None:
        """A host has answered this prompt."""
        ...

    def find(self, model: str, prompt: PromptIdentity, backends: Collection[str]) -> tuple[str, int] | None:
        """Which of these hosts has last answered the beginning of this prompt, and how many bytes of it."""
        ...


def with_hint(
    offers: Mapping[str, HostOffer], model: str, prompt: PromptIdentity | None, hints: ConversationHints | None
) -> Mapping[str, HostOffer]:
    """The offers of a model's hosts for a prompt. Where a host itself says that it has answered some of it, that decides."""
    if hints is None or prompt is None or not prompt.marks or any(each.read_before for each in offers.values()):
        return offers
    available = [name for name, each in offers.items() if each.available]
    found = hints.find(model, prompt, available) if available else None
    if found is None:
        return offers
    backend, size = found
    return {**offers, backend: msgspec.structs.replace(offers[backend], read_before=size)}
