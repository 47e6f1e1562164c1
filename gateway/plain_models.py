"""The models of backends without a supervisor: under which names they are served, and by which backends.

Several backends may have a model of the same name. In the order of the chain, the first one has the name; further ones
replace it when it fails if the settings map the name, or if they are local: what a local model was asked never goes to
a remote backend that happens to have a model of the same name. Each can be asked for as `backend/name`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from hostler.adapters.model_list import ModelCard
from hostler.adapters.model_names import normalized
from hostler.adapters.remote_models import RemoteModel
from hostler.gateway.backend_settings import BackendSettings, ModelDescription
from hostler.gateway.model_cards import server_card
from hostler.gateway.model_mapping import matches
from hostler.profiles.request_rules import RequestRules
from hostler.supervisor.contract import AnswerLimits

_NOT_DESCRIBED = ModelDescription()


class CatalogBackend(msgspec.Struct, frozen=True, kw_only=True):
    """A backend of a model, the model's name there, its context there (0: unknown), and what it certainly cannot do.

    `hosted`: it has a supervisor, which may have to load the model. `limits` are those of its profile there, `request`
    changes requests on their way there.
    """

    backend: str
    name_there: str
    context: int = 0
    hosted: bool = False
    lacks: frozenset[str] = frozenset()
    limits: AnswerLimits | None = None
    request: RequestRules | None = None


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A model of a backend under one of our names. `mapped`: the settings name it."""

    name: str
    name_there: str
    mapped: bool


class PlainBackend:
    """A backend without a supervisor and the models that it reported; `reported` is false until it has."""

    def __init__(self, name: str, settings: BackendSettings) -> None:
        self.name = name
        self.local = settings.is_local
        self._settings = settings
        self._mapping = settings.mapping
        self._models: dict[str, RemoteModel] = {}
        self._names: dict[str, RemoteModel] = {}
        self.reported = False

    def report(self, models: Sequence[RemoteModel]) -> None:
        """The models that the backend has now."""
        self.reported = True
        self._models = {model.name: model for model in models}
        self._names = {normalized(spelling): model for model in models for spelling in (*model.aliases, model.name)}

    def offers(self) -> Iterator[Offer]:
        """The models that are listed."""
        for ours, theirs in self._mapping.exact.items():
            yield Offer(name=ours, name_there=theirs, mapped=True)
        for model in self._models.values():
            for ours in self._mapping.names_here(model.name):
                if ours not in self._mapping.exact:
                    yield Offer(name=ours, name_there=model.name, mapped=ours != model.name)

    def replaces(self, name: str) -> CatalogBackend | None:
        """This backend for a model that others have, where the settings name it or a wildcard stands for it."""
        there = self._mapping.name_there(name)
        if there is None:
            return None
        # A wildcard that keeps names says nothing about which of them exist there.
        if name not in self._mapping.exact and self.reported and self._mapping.passes(name) is not None:
            model = self._find(there)
            return None if model is None else self.place(model.name)
        return self.place(there)

    def has(self, name: str) -> CatalogBackend | None:
        """This backend if it lists the model under its own name, in any spelling."""
        model = self._names.get(normalized(name)) if self._mapping.discovers else None
        return self.place(model.name) if model is not None and self._mapping.admits(model.name) else None

    def passes(self, name: str) -> CatalogBackend | None:
        """This backend for a name that no backend lists, where a wildcard passes names on."""
        there = self._mapping.passes(name)
        return None if there is None else self.place(there)

    def place(self, name_there: str) -> CatalogBackend:
        """This backend with one of its models."""
        model = self._find(name_there)
        described = self._described(name_there, name_there)
        context = described.context or self._settings.context or 0
        if not context and model is not None:
            context = model.running_context or model.context
        return CatalogBackend(backend=self.name, name_there=name_there, context=context, request=self._settings.request)

    def card(self, name: str, name_there: str, *, since: int) -> ModelCard:
        """The card of one of its models under our name."""
        return server_card(
            name,
            self._find(name_there),
            self._described(name, name_there),
            name_there=name_there,
            since=since,
            context=self._settings.context or 0,
        )

    def _find(self, name_there: str) -> RemoteModel | None:
        return self._models.get(name_there) or self._names.get(normalized(name_there))

    def _described(self, name: str, name_there: str) -> ModelDescription:
        """The description of the model's own name, else that of the first pattern."""
        describe = self._settings.describe
        for spelling in (name, name_there):
            if spelling in describe:
                return describe[spelling]
        found = (
            each for pattern, each in describe.items() if matches(name, (pattern,)) or matches(name_there, (pattern,))
        )
        return next(found, _NOT_DESCRIBED)


class PlainModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model of backends without a supervisor: its card, and its backends in the order of the chain."""

    card: ModelCard
    places: tuple[CatalogBackend, ...]


def plain_models(
    backends: Mapping[str, PlainBackend], chain: Sequence[str], *, taken: frozenset[str], since: int
) -> tuple[PlainModel, ...]:
    """All models of these backends but those whose name is `taken`, as `normalized`; and each of a name that is, or
    that several backends have, as `backend/name`. `chain` is the order of the backends."""
    in_order = [backends[name] for name in chain if name in backends]
    # Backends that no request is sent to are listed all the same, as unavailable.
    in_order += [backend for name, backend in backends.items() if name not in chain]
    groups: dict[str, list[tuple[PlainBackend, Offer]]] = {}
    for backend in in_order:
        for offer in backend.offers():
            groups.setdefault(normalized(offer.name), []).append((backend, offer))
    models: list[PlainModel] = []
    for key, group in groups.items():
        first, offer = group[0]
        if key not in taken:
            card = first.card(offer.name, offer.name_there, since=since)
            models.append(PlainModel(card=card, places=_places(offer, first, in_order, chain)))
        if key not in taken and len({backend.name for backend, _ in group}) == 1:
            continue
        for backend, own in group:
            name = f"{backend.name}/{own.name}"
            if not own.mapped and normalized(name) not in groups and normalized(name) not in taken:
                card = backend.card(name, own.name_there, since=since)
                places = (backend.place(own.name_there),) if backend.name in chain else ()
                models.append(PlainModel(card=card, places=places))
    return tuple(models)


def _places(
    offer: Offer, first: PlainBackend, in_order: Sequence[PlainBackend], chain: Sequence[str]
) -> tuple[CatalogBackend, ...]:
    """The backends for a name. A remote one that was only discovered does not replace a local one."""
    places = []
    for backend in in_order:
        if backend.name not in chain:
            continue
        place = backend.place(offer.name_there) if backend is first else backend.replaces(offer.name)
        if place is None and (backend.local or not first.local):
            place = backend.has(offer.name)
        if place is not None:
            places.append(place)
    return tuple(places)
