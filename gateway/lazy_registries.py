"""Registries of models, whose modules are imported at their first use: most gateways never need them."""

from __future__ import annotations

from collections.abc import Callable

from hostler.gateway.model_offer import DownloadedModel, FoundRepository, ModelOffer, Registries
from hostler.profiles.downloads import Cancellation
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.sources import ReportProgress


class LazyRegistries:
    """`OfferedModels`, imported at its first use."""

    def __init__(self, engine: str | None, held: Callable[[], int]) -> None:
        self._engine = engine
        self._held = held

    def search(self, words: str, cancellation: Cancellation) -> list[FoundRepository]:
        return self._load().search(words, cancellation)

    def offer(self, reference: str, cancellation: Cancellation) -> ModelOffer | None:
        return self._load().offer(reference, cancellation)

    def get(self, reference: str, name: str, report: ReportProgress, cancellation: Cancellation) -> DownloadedModel:
        return self._load().get(reference, name, report, cancellation)

    def _load(self) -> Registries:
        from hostler.gateway.offered_models import OfferedModels

        return OfferedModels(self._engine, self._held)


def get_from_registry(
    engine: str | None, name: str, report: ReportProgress, cancellation: Cancellation
) -> tuple[ProfileEntry, Preset | None]:
    """See `model_getter.get_from_registry`, which is imported now."""
    from hostler.gateway import model_getter

    return model_getter.get_from_registry(engine, name, report, cancellation)
