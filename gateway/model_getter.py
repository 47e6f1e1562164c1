"""Gets models from registries: what there is, what fits this machine, the files, and the profile. Blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import UNSET

from hostler.gateway.model_finder import ModelFinder
from hostler.profiles import hub
from hostler.profiles.companions import may_draft
from hostler.profiles.downloads import Cancellation
from hostler.profiles.fetch import fetch_sync
from hostler.profiles.gguf import GGUFError, read_facts
from hostler.profiles.hub_reference import HubReference, parse_reference
from hostler.profiles.model_scan import FoundModel, kind_of, profile_names
from hostler.profiles.ollama_registry import RegistryModel, read_registry_model
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ModelFacts, Profile, ProfileEntry
from hostler.profiles.sources import ModelSource, ReportProgress, SourceError, cache_directory
from hostler.supervisor.model_fit import COMFORTABLE, ModelFit, Room, fit_model

#: Downloads the file of a profile, unless it is here. Raises `SourceError`.
FetchFile = Callable[[Profile], Path]


class HubChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One way in which a repository stores its model, and whether it fits."""

    model: hub.HubModel
    fit: ModelFit
    fits: str


class HubOffer(msgspec.Struct, frozen=True, kw_only=True):
    """What a repository has for this machine. `chosen` is what the reference names, or the usual one of those that fit."""

    repository: hub.HubRepository
    choices: tuple[HubChoice, ...]
    chosen: HubChoice


class GotModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model whose files are here, and how it will run. `preset` is what its registry says beyond that."""

    name: str
    entry: ProfileEntry
    fit: ModelFit
    path: Path
    projector: Path | None = None
    draft: Path | None = None
    preset: Preset | None = None


class ModelGetter:
    """Gets models for an engine, given like `supervisor.engine`."""

    def __init__(
        self, engine: str | None, fetch: FetchFile, *, finder: ModelFinder | None = None,
        cancellation: Cancellation | None = None,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._fetch = fetch
        self._finder = finder or ModelFinder()
        self._cancellation = cancellation or Cancellation()

    def search(self, words: str) -> list[hub.HubResult]:
        """See `hub.search`."""
        return hub.search(words, self._cancellation)

    def offer(self, reference: HubReference) -> HubOffer:
        """What a repository has, and what fits. Raises `SourceError`."""
        repository = hub.read_repository(reference, self._cancellation)
        named = hub.choose(repository, reference)
        facts = hub.read_remote_facts(repository, named or hub.usual(repository.models), self._cancellation)
        room = self._finder.room(self._engine)
        choices = tuple(_choice(model, facts, room, _beside(repository, model)) for model in repository.models)
        fitting = [each.model for each in choices if each.fit.fits] or [choices[0].model]
        model = named or hub.usual(fitting)
        return HubOffer(
            repository=repository, choices=choices, chosen=next(each for each in choices if each.model is model)
        )

    def get_from_hub(self, offer: HubOffer, reference: HubReference, *, name: str | None = None) -> GotModel:
        """Download what was chosen, with its projector and its draft. Raises `SourceError`."""
        repository, model = offer.repository, offer.chosen.model
        name = name or profile_name(model)
        source = repository.source(model.files[0])
        path = self._fetch_checked(source, model.files[0].sha256)
        projector, draft = (
            None if file is None else self._fetch_checked(repository.source(file), file.sha256)
            for file in (repository.projector(), repository.draft(model))
        )
        alias = _tagged(reference, model).name
        aliases = (alias,) if len(alias) <= 128 and alias != name else ()
        return self._got(name, path, projector, source, draft=draft, aliases=aliases)

    def read_registry(self, reference: HubReference) -> RegistryModel:
        """See `ollama_registry.read_registry_model`."""
        return read_registry_model(reference, self._cancellation)

    def get_from_registry(self, found: RegistryModel, reference: HubReference, *, name: str | None = None) -> GotModel:
        """Download a model of Ollama's registry. Raises `SourceError`."""
        path = self._fetch_checked(found.model.url, found.model.sha256)
        beside = None
        if found.projector is not None:
            beside = self._fetch_checked(found.projector.url, found.projector.sha256)
        name = name or reference.name
        parameters = dict(found.parameters)
        context = parameters.pop("num_ctx", None)
        got = self._got(name, path, beside, found.model.url, sha256=found.model.sha256)
        if isinstance(context, int) and 0 < context < got.fit.context:
            got = msgspec.structs.replace(got, entry=msgspec.structs.replace(got.entry, context=context))
        preset = Preset(model=name, system=found.system, parameters=parameters, license=found.licenses)
        return msgspec.structs.replace(got, preset=preset)

    def _fetch_checked(self, source: str, sha256: str) -> Path:
        parts = ModelSource.parse(source).shards()
        # The hub announces the checksums of further parts itself.
        return self._fetch(Profile(name=parts[0].name, model=source, sha256=sha256 or None))

    def _got(
        self, name: str, path: Path, projector: Path | None, source: str, *, draft: Path | None = None,
        aliases: tuple[str, ...] = (), sha256: str | None = None,
    ) -> GotModel:  # fmt: skip
        try:
            facts = read_facts(path)
            if draft is not None and not may_draft(read_facts(draft), facts):
                draft = None
        except GGUFError as error:
            raise SourceError(str(error)) from None
        self._finder.room(self._engine)
        model = FoundModel(path=path, kind=kind_of(facts), facts=facts, projector=projector, draft=draft)
        found = self._finder.profile(name, model)
        entry = msgspec.structs.replace(
            found.entry, model=source, aliases=aliases or UNSET, sha256=UNSET if sha256 is None else sha256
        )
        return GotModel(name=name, entry=entry, fit=found.fit, path=path, projector=projector, draft=draft)


def get_from_registry(
    engine: str | None, name: str, report: ReportProgress, cancellation: Cancellation
) -> tuple[ProfileEntry, Preset | None]:
    """Get a model of a registry by the name that a client of Ollama uses, into the cache folder. Raises `SourceError`."""
    reference = parse_reference(name, by_ollama=True)
    if reference is None:
        raise SourceError(f"{name!r} names no registry")
    got = get_model(engine, reference, name, report, cancellation)
    return got.entry, got.preset


def profile_name(model: hub.HubModel) -> str:
    """The name of a model's profile, unless it gets another one."""
    path = Path(model.files[0].path)
    return profile_names([path])[path]


def get_model(
    engine: str | None, reference: HubReference, name: str, report: ReportProgress, cancellation: Cancellation,
    *, finder: ModelFinder | None = None,
) -> GotModel:  # fmt: skip
    """Get a model into the cache folder. Raises `SourceError`."""
    cache = cache_directory()
    getter = ModelGetter(
        engine, lambda profile: fetch_sync(profile, cache, report, cancellation), finder=finder,
        cancellation=cancellation,
    )  # fmt: skip
    if reference.registry == "hub":
        return getter.get_from_hub(getter.offer(reference), reference, name=name)
    return getter.get_from_registry(getter.read_registry(reference), reference, name=name)


def _tagged(reference: HubReference, model: hub.HubModel) -> HubReference:
    """The reference of this model as clients write it."""
    return msgspec.structs.replace(reference, tag=model.quantization, file="")


def _beside(repository: hub.HubRepository, model: hub.HubModel) -> int:
    """The size of what is loaded beside a model."""
    return sum(file.size for file in (repository.projector(), repository.draft(model)) if file is not None)


def _choice(model: hub.HubModel, facts: ModelFacts, room: Room, beside: int) -> HubChoice:
    of_model = msgspec.structs.replace(facts, bytes=model.size)
    embeddings = kind_of(of_model) != "chat"
    fit = fit_model(of_model, room, embeddings=embeddings, beside=beside)
    return HubChoice(model=model, fit=fit, fits=_label(fit, of_model, room, embeddings=embeddings))


def _label(fit: ModelFit, facts: ModelFacts, room: Room, *, embeddings: bool) -> str:
    """`yes`, `with 32k context`, or `no`; of a GPU, if there is one."""
    if not fit.fits:
        return "no"
    if room.gpu and fit.need > room.gpu:
        return "partly on the GPU"
    comfortable = min(facts.training_context or COMFORTABLE, COMFORTABLE)
    if embeddings or fit.context >= (facts.training_context or fit.context):
        return "yes"
    if not room.gpu and fit.context >= comfortable:
        return "yes"
    return f"with {fit.context // 1024}k context" if fit.context >= 1024 else f"with a context of {fit.context}"
