"""The models as clients may see them: one immutable snapshot that every probe of every protocol is answered from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from hostler.adapters.model_names import folded
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ModelFacts

#: `available` and `unavailable` are of models that no supervisor answers for; the gateway's own status tells them, and
#: clients' lists call them `loaded`, since nothing has to be loaded for them.
CardState = Literal["unloaded", "loading", "loaded", "sleeping", "failed", "available", "unavailable"]


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One model under its own name.

    `context` is the number of tokens one request can really have, never the training context. `created` and
    `modified_at` are seconds since the epoch and stay the same between two starts. `digest` is 64 hex digits,
    distinct per profile. `facts` is what the model's file says of itself, `None` when nobody could read it.
    `expires_at` is when an idle model will be unloaded; `None` while unloaded, `inf` for never. `percent` is of the load
    under way, where the engine tells.
    `preset` is what a client made it of; the model of that name runs for it.
    """

    name: str
    aliases: tuple[str, ...] = ()
    state: CardState = "unloaded"
    context: int = 0
    parallel: int = 1
    created: int = 0
    modified_at: float = 0.0
    size: int = 0
    digest: str = ""
    facts: ModelFacts | None = None
    capabilities: tuple[str, ...] = ("completion",)
    description: str = ""
    listed: bool = True
    memory_bytes: int = 0
    gpu_bytes: int = 0
    expires_at: float | None = None
    failure: str | None = None
    percent: float | None = None
    preset: Preset | None = None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models at one moment, in the order clients see them: the active or default one first, then by name.

    `index` maps every accepted spelling (names and aliases) to its card. `active` is the model that runs (the
    one used last, if several do), `default` the profile to use when nothing is named and nothing runs.
    """

    cards: tuple[ModelCard, ...] = ()
    index: Mapping[str, ModelCard] = {}
    active: str | None = None
    default: str | None = None
    version: str = ""

    def find(self, name: str) -> ModelCard | None:
        """The card for a name or an alias exactly as spelled; protocols with looser names fold them first."""
        return self.index.get(name)

    def resolve(self, name: str) -> ModelCard | None:
        """The card for a name in any spelling that Ollama takes: `Library/NAME:Latest`. An exact one is preferred."""
        card = self.index.get(name)
        if card is not None:
            return card
        wanted = folded(name)
        return next((card for spelling, card in self.index.items() if folded(spelling) == wanted), None)

    def names(self) -> list[str]:
        """The names of the listed models, in order, without aliases."""
        return [card.name for card in self.cards if card.listed]
