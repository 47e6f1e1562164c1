"""What registries offer to operators of a running gateway, and the download of one of it. Blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hostler.gateway.model_finder import Findings, ModelFinder
from hostler.gateway.model_getter import ModelGetter, get_model, profile_name
from hostler.gateway.model_offer import DownloadedModel, FoundRepository, ModelOffer, OfferedModel
from hostler.profiles import hub
from hostler.profiles.downloads import Cancellation
from hostler.profiles.hub_reference import HubReference, parse_reference
from hostler.profiles.schema import Profile
from hostler.profiles.sources import ReportProgress, SourceError

_GIB = 1024**3


class OfferedModels:
    """Implements `model_offer.Registries` for a running gateway with this engine. `held` is what its loaded models take
    of the GPUs."""

    def __init__(self, engine: str | None, held: Callable[[], int]) -> None:
        self._engine = engine
        self._held = held

    def search(self, words: str, cancellation: Cancellation) -> list[FoundRepository]:
        """See `model_offer.Registries`."""
        return [
            FoundRepository(
                name=each.name,
                downloads=each.downloads,
                likes=each.likes,
                note="gated" if each.gated else "private" if each.private else "",
            )
            for each in hub.search(words, cancellation)
        ]

    def offer(self, reference: str, cancellation: Cancellation) -> ModelOffer | None:
        """See `model_offer.Registries`."""
        parsed = parse_reference(reference)
        if parsed is None:
            return None
        finder = ModelFinder(held=self._held)
        getter = ModelGetter(self._engine, _nothing, finder=finder, cancellation=cancellation)
        if parsed.registry == "ollama":
            found = getter.read_registry(parsed)
            projector = 0 if found.projector is None else found.projector.size
            model = OfferedModel(
                reference=reference, name=parsed.name, quantization=parsed.tag, size=found.model.size, chosen=True
            )
            return ModelOffer(
                repository=parsed.repository, models=(model,), licenses=found.licenses, projector_size=projector
            )
        offer = getter.offer(parsed)
        projected, drafting = offer.repository.projector(), offer.repository.draft(offer.chosen.model)
        return ModelOffer(
            repository=offer.repository.name,
            models=tuple(
                OfferedModel(
                    reference=_exact(parsed, each.model),
                    name=profile_name(each.model),
                    quantization=each.model.quantization,
                    size=each.model.size,
                    files=len(each.model.files),
                    fits=each.fits,
                    context=each.fit.context if each.fit.fits else None,
                    chosen=each is offer.chosen,
                )
                for each in offer.choices
            ),
            room=_described(finder.findings),
            licenses=(offer.repository.license,) if offer.repository.license else (),
            projector="" if projected is None else projected.path,
            projector_size=0 if projected is None else projected.size,
            draft="" if drafting is None else drafting.path,
            draft_size=0 if drafting is None else drafting.size,
        )

    def get(self, reference: str, name: str, report: ReportProgress, cancellation: Cancellation) -> DownloadedModel:
        """See `model_offer.Registries`."""
        parsed = parse_reference(reference)
        if parsed is None:
            raise SourceError(f"{reference!r} names no model of a registry")
        got = get_model(self._engine, parsed, name, report, cancellation, finder=ModelFinder(held=self._held))
        return DownloadedModel(entry=got.entry, preset=got.preset, why=got.fit.why)


def _nothing(profile: Profile) -> Path:
    raise SourceError(f"{profile.name} is not downloaded by an offer")


def _exact(reference: HubReference, model: hub.HubModel) -> str:
    """The reference of this model, and of no other of the repository."""
    revision = "" if reference.revision == "main" else f"@{reference.revision}"
    return f"hf.co/{reference.repository}{revision}/{model.files[0].path}"


def _described(findings: Findings) -> str:
    """What models may take, in words."""
    devices = () if findings.engine is None else findings.engine.devices
    gpus = [f"{each.model or each.name} with {each.free / _GIB:.1f} GiB" for each in devices]
    return ", ".join([*gpus, f"{findings.memory / _GIB:.1f} GiB of memory"])
