"""Where models are served, and the names that clients may call them by."""

from __future__ import annotations

import msgspec

from hostler.adapters.model_list import ModelCard
from hostler.adapters.model_names import normalized
from hostler.gateway.plain_models import CatalogBackend
from hostler.profiles.presets import Preset
from hostler.profiles.request_rules import RequestRules


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """A model, its card, and its backends in the order of the chain.

    `local_only`: requests for it are served by local backends only, also while a host that may have it was never reached,
    since only its profile knows. With a `preset` the requested name is the preset's, and `model` the model it was created
    from. `request` are the changes of its requests, at whichever backend.
    """

    model: str
    card: ModelCard
    places: tuple[CatalogBackend, ...]
    local_only: bool = False
    preset: Preset | None = None
    request: tuple[RequestRules, ...] = ()


def rules_of(placement: Placement, place: CatalogBackend) -> tuple[RequestRules, ...]:
    """The changes of requests for a model at one of its backends, in order."""
    return placement.request if place.request is None else (*placement.request, place.request)


class Names(msgspec.Struct, frozen=True):
    """Every spelling of some models' names, with card and placement; `normal` has the `normalized` ones."""

    index: dict[str, ModelCard]
    placements: dict[str, Placement]
    normal: dict[str, ModelCard]

    def add(self, placement: Placement) -> None:
        """Add a model under its name and aliases, with and without Ollama's default tag. Earlier names take precedence."""
        card = placement.card
        for spelling in (card.name, *card.aliases):
            short = spelling.removesuffix(":latest")
            for accepted in (spelling, f"{short}:latest", short):
                self.index.setdefault(accepted, card)
                self.placements.setdefault(accepted, placement)
            self.normal.setdefault(normalized(spelling), card)

    def over(self, others: Names) -> Names:
        """These names and those of others, which give way."""
        return Names(others.index | self.index, others.placements | self.placements, others.normal | self.normal)
