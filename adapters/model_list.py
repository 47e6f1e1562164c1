"""The models as clients see them: one immutable snapshot from which every protocol answers its model lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from hostler.adapters.model_names import normalized
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ModelFacts

#: `available` and `unavailable` are states of models without a supervisor. Only the gateway's own status shows them;
#: protocols list these models as `loaded`, since nothing has to be loaded for them.
CardState = Literal["unloaded", "loading", "loaded", "sleeping", "failed", "available", "unavailable"]


ModelKind = Literal["chat", "embedding", "rerank", "decision", "other"]
_KINDS: tuple[ModelKind, ...] = ("embedding", "rerank", "decision")


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One model under its own name.

    `context` is the number of tokens that one request can really have, never the training context. `created` and
    `modified_at` are seconds since the epoch, stable over restarts. `digest` is 64 hex digits, distinct per profile.
    `facts` is the metadata of the model's file, `None` if it could not be read. `expires_at` is when an idle model will
    be unloaded; `None` while unloaded, `inf` for never. `percent` is the progress of loading, if known.
    `state_known`: a supervisor that can be reached says what its state is. `preset` is set for a model that a client
    derived from another one, which runs for it. `thinking` are the values that it accepts for reasoning (`true`,
    `false`, levels), if they are known, and `thinking_default` the one that it uses without any. `runner` is the kind of
    engine, under Ollama's names, if it is known. `metadata` are values of the operator's, `progress` overrides what
    waiting clients see.
    """

    name: str
    aliases: tuple[str, ...] = ()
    state: CardState = "unloaded"
    state_known: bool = True
    context: int = 0
    parallel: int = 1
    created: int = 0
    modified_at: float = 0.0
    size: int = 0
    digest: str = ""
    facts: ModelFacts | None = None
    capabilities: tuple[str, ...] = ("completion",)
    thinking: tuple[bool | str, ...] = ()
    thinking_default: bool | str | None = None
    runner: str = ""
    description: str = ""
    metadata: Mapping[str, Any] = {}
    progress: str | None = None
    listed: bool = True
    memory_bytes: int = 0
    gpu_bytes: int = 0
    expires_at: float | None = None
    failure: str | None = None
    percent: float | None = None
    preset: Preset | None = None

    @property
    def kind(self) -> ModelKind:
        """What the model is for."""
        if "completion" in self.capabilities:
            return "chat"
        return next((kind for kind in _KINDS if kind in self.capabilities), "other")


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models at one moment, in the order in which clients see them: the active or default one first, then by name.

    `index` maps names and aliases to cards, `normal` their `normalized` forms. `active` is the loaded model (the one
    used last, if there are several), `default` the one to use for requests that name none while none is loaded.
    """

    cards: tuple[ModelCard, ...] = ()
    index: Mapping[str, ModelCard] = {}
    normal: Mapping[str, ModelCard] = {}
    active: str | None = None
    default: str | None = None
    version: str = ""

    def find(self, name: str) -> ModelCard | None:
        """The card for a name or an alias, exactly as spelled."""
        return self.index.get(name)

    def resolve(self, name: str) -> ModelCard | None:
        """The card for a name or an alias in any spelling that Ollama accepts, such as `Library/NAME:Latest`."""
        card = self.index.get(name)
        if card is not None:
            return card
        wanted = normalized(name)
        if self.normal:
            return self.normal.get(wanted)
        return next((card for spelling, card in self.index.items() if normalized(spelling) == wanted), None)

    def names(self) -> list[str]:
        """The names of the listed models in order, without aliases."""
        return [card.name for card in self.cards if card.listed]

    def only(self, allowed: Callable[[str], bool]) -> ModelList:
        """The list of the models whose names are `allowed`."""
        cards = tuple(card for card in self.cards if allowed(card.name))
        names = {card.name for card in cards}
        return msgspec.structs.replace(
            self,
            cards=cards,
            index={name: card for name, card in self.index.items() if card.name in names},
            normal={name: card for name, card in self.normal.items() if card.name in names},
            active=self.active if self.active in names else None,
            default=self.default if self.default in names else None,
        )
