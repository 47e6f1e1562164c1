"""The models, their names, and the backends of each: an immutable snapshot that is replaced as a whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import anyio
import msgspec

from hostler.adapters.errors import BadRequest, ModelNotFound, ModelUnavailable
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.model_names import normalized
from hostler.adapters.remote_models import RemoteModel
from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.events import printable
from hostler.gateway.hosted_models import hosted_models
from hostler.gateway.model_cards import only_chat_model, preset_card, variant_card
from hostler.gateway.placements import Names, Placement
from hostler.gateway.plain_models import CatalogBackend, PlainBackend, PlainModel, plain_models
from hostler.gateway.settings import VariantSettings
from hostler.profiles.presets import Preset
from hostler.supervisor.contract import HostStatus, ProfileInfo

#: Names listed in an error message.
MAX_NAMES = 20
#: `Retry-After` of requests while no backend has reported its models, in seconds.
_NOT_REPORTED_S = 5.0

#: What capabilities are for, in the words of errors.
_KINDS: Mapping[str, str] = {
    "completion": "chat", "embedding": "embeddings", "rerank": "reranking", "decision": "decisions",
}  # fmt: skip


class PlainPart(msgspec.Struct, frozen=True):
    """What follows from the backends without a supervisor. Kept while `taken`, the hosts' names, and `unknown` are the
    same: hosts report their states all the time."""

    taken: frozenset[str]
    unknown: frozenset[str]
    models: tuple[PlainModel, ...]
    names: Names


class Catalog:
    """Owner of the snapshot. `since`, in seconds since the epoch, is the creation time of models known by name only."""

    def __init__(
        self,
        backends: Mapping[str, BackendSettings],
        chain: Sequence[str],
        *,
        version: str,
        presets: Mapping[str, Preset] | None = None,
        variants: Mapping[str, VariantSettings] | None = None,
        since: float = 0.0,
    ) -> None:
        self._since = int(since)
        self._plain = {
            name: PlainBackend(name, backend) for name, backend in backends.items() if backend.kind != "supervisor"
        }
        self._plain_kept: PlainPart | None = None
        self._chain = tuple(chain)
        self._version = version
        self._unknown = {name for name in (*backends, *chain) if name not in self._plain}
        self._declared = {name: backend.models for name, backend in backends.items() if backend.kind == "supervisor"}
        self._hosts: dict[str, HostStatus] = {}
        self._active: str | None = None
        self._presets = dict(presets or {})
        self._variants = dict(variants or {})
        self._changed = anyio.Event()
        self._placements: dict[str, Placement] = {}
        self._listing = ModelList(version=version)
        self._rebuild()

    @property
    def listing(self) -> ModelList:
        """The current snapshot."""
        return self._listing

    def update_host(self, backend: str, status: HostStatus) -> None:
        """The status of a supervised host. An unreachable host keeps its last one."""
        self._hosts[backend] = status
        self._unknown.discard(backend)
        self._rebuild()

    def restore_host(self, backend: str, profiles: tuple[ProfileInfo, ...]) -> None:
        """The profiles of a host that has not been reached yet: it may sleep, and a request for one of them may wake it."""
        if profiles and backend not in self._hosts:
            self._hosts[backend] = HostStatus(profiles=profiles)
            self._unknown.discard(backend)
            self._rebuild()

    def set_chain(self, chain: Sequence[str], *, gone: str | None = None) -> None:
        """The backends in their order, to which a host was added, or from which `gone` was removed. What a new one has is
        known once it reports it."""
        self._chain = tuple(chain)
        if gone is not None:
            self._hosts.pop(gone, None)
        self._rebuild()

    @property
    def unknown_hosts(self) -> frozenset[str]:
        """Hosts that were never reached: nothing is known about their models."""
        return frozenset(self._unknown)

    def update_models(self, backend: str, models: Sequence[RemoteModel]) -> None:
        """The models that a backend without a supervisor has. An unreachable one keeps its last ones."""
        self._plain[backend].report(models)
        self._plain_kept = None
        self._rebuild()

    def set_presets(self, presets: Mapping[str, Preset]) -> None:
        """Replace the models that clients created from others."""
        self._presets = dict(presets)
        self._rebuild()

    @property
    def presets(self) -> Mapping[str, Preset]:
        """The models that clients created from others."""
        return self._presets

    async def wait_until(self, condition: Callable[[ModelList], bool]) -> None:
        """Wait until the snapshot fulfils `condition`."""
        while not condition(self._listing):
            await self._changed.wait()

    def set_active(self, model: str) -> None:
        """`model` is in use: it serves requests that name no model."""
        if model != self._active:
            self._active = model
            self._rebuild()

    def find(self, name: str | None, service: str | None = None) -> Placement:
        """The model of this name or alias, in any spelling; for `None` the active or default one, which is the only chat model
        if none is marked. Errors name the models that have the capability `service`, if there are any.

        Raises `ModelNotFound` with the known names, `BadRequest` if none is named and none is active, or `ModelUnavailable`
        while no model is known since no backend has reported its models yet.
        """
        if name is None:
            name = self._listing.active or self._listing.default
            if name is None:
                self._expect_models(name)
                known = self._known_names(service)
                there_are = self._listing.names() if service is None else self._able(service)
                way_out = f'set "model": {known}' if there_are else known
                raise BadRequest(f"no model named and none loaded; {way_out}", param="model")
        placement = self._placements.get(name)
        if placement is None:
            card = self._listing.resolve(name)
            placement = self._placements.get(card.name) if card is not None else self._unlisted(name)
        if placement is None:
            self._expect_models(name)
            raise ModelNotFound(
                f"the model `{printable(name, 100)}` does not exist; {self._known_names(service)}",
                model=name,
                param="model",
            )
        return placement

    def default_for(self, service: str) -> str | None:
        """The model of requests that name none and need this capability, while the active or default one does not have it:
        for chats the default one, for others the only one that has it. `None` leaves them to `find`."""
        name = self._listing.active or self._listing.default
        card = self._listing.index.get(name) if name is not None else None
        if card is not None and service in card.capabilities:
            return None
        if service == "completion":
            return self._listing.default if card is not None else None
        able = self._able(service)
        return able[0] if len(able) == 1 else None

    def _able(self, service: str | None) -> list[str]:
        """The listed models that have a capability."""
        return [card.name for card in self._listing.cards if card.listed and service in card.capabilities]

    def without_model(self, *, sends: bool, hosts: bool = True) -> Placement | None:
        """Where a request without a model goes that no protocol describes: where the active model is, then to the servers
        without a supervisor. What it `sends` does not go from a host to a remote server. Without `hosts` these servers are
        the only ones. `None` if there are none."""
        name = (self._listing.active or self._listing.default) if hosts else None
        own = self._placements.get(name) if name is not None else None
        places = list(own.places) if own is not None else []
        known = {place.backend for place in places}
        for backend in self._chain:
            plain = self._plain.get(backend)
            if plain is not None and backend not in known and (plain.local or own is None or not sends):
                places.append(CatalogBackend(backend=backend, name_there=""))
        if not places:
            return None
        card = own.card if own is not None else ModelCard(name="", state="loaded")
        return Placement(
            model=name or "", card=card, places=tuple(places), local_only=own is not None and own.local_only
        )

    def _expect_models(self, name: str | None) -> None:
        """Raise `ModelUnavailable` if no model is known and some backends have not reported theirs yet."""
        silent = [each for each in self._chain if each in self._unknown or self._is_silent(each)]
        if silent and not self._listing.cards:
            raise ModelUnavailable(
                f"no models are known yet, since these backends have not reported theirs: {', '.join(silent[:MAX_NAMES])}; "
                "`hostler backends` shows why",
                model=name, retry_after_s=_NOT_REPORTED_S,
            )  # fmt: skip

    def _is_silent(self, backend: str) -> bool:
        plain = self._plain.get(backend)
        return plain is not None and not plain.reported

    def _known_names(self, service: str | None) -> str:
        """The models that have a capability, else all of them with a word about that."""
        names, able = self._listing.names(), self._able(service)
        if not names:
            return "there are no models: add a profile, a backend, or a file to a folder of `profiles.scan`"
        kind = "" if service is None else f" for {_KINDS.get(service, service)}"
        if kind and not able:
            return f"none of {len(names)} models is known to be{kind}: {_listed(names)}"
        shown = able or names
        about = kind if len(shown) < len(names) else ""
        return (
            f"{len(shown)} models{about}: {_listed(shown)}" if len(shown) > 1 else f"the only model{about}: {shown[0]}"
        )

    def _rebuild(self) -> None:
        hosted = hosted_models(self._hosts, self._chain)
        cards = dict(hosted.cards)
        plain = self._plain_part(cards)
        for backend in self._chain:
            if backend in self._unknown:
                for model in self._declared.get(backend, ()):
                    if "*" not in model and model not in cards and model not in plain.names.index:
                        cards[model] = ModelCard(name=model, state="unloaded", created=self._since)
        names = Names({}, {}, {})
        for name, card in cards.items():
            names.add(self._hosted_placement(card, hosted.places.get(name, {}), hosted.profiles.get(name, [])))
        names = names.over(plain.names)
        cards |= {served.card.name: served.card for served in plain.models if served.card.name not in cards}
        self._active = self._running(cards, hosted.cards)
        names = self._with_variants(cards, names)
        names = self._with_presets(cards, names)
        default = hosted.default or only_chat_model(cards.values())
        first = self._active or default
        ordered = tuple(sorted(cards.values(), key=lambda card: (card.name != first, card.name)))
        self._placements = names.placements
        self._listing = ModelList(
            cards=ordered,
            index=names.index,
            normal=names.normal,
            active=self._active,
            default=default,
            version=self._version,
        )
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _plain_part(self, hosted: Mapping[str, ModelCard]) -> PlainPart:
        taken = frozenset(normalized(name) for card in hosted.values() for name in (card.name, *card.aliases))
        unknown = frozenset(self._unknown)
        if self._plain_kept is None or (self._plain_kept.taken, self._plain_kept.unknown) != (taken, unknown):
            models = plain_models(self._plain, self._chain, taken=taken, since=self._since)
            names = Names({}, {}, {})
            for model in models:
                names.add(self._plain_placement(model))
            self._plain_kept = PlainPart(taken, unknown, models, names)
        return self._plain_kept

    def _plain_placement(self, model: PlainModel) -> Placement:
        name, places = model.card.name, model.places
        if self._unknown:
            own = {place.backend: place for place in places}
            in_order = ((own.get(backend) or self._unknown_place(backend, name)) for backend in self._chain)
            places = tuple(filter(None, in_order))
        return Placement(model=name, card=model.card, places=places, local_only=self._may_be_private(name))

    def _hosted_placement(
        self, card: ModelCard, own: Mapping[str, CatalogBackend], profiles: Sequence[ProfileInfo]
    ) -> Placement:
        """The placement of a model that a host has, or may have."""
        chain = next((profile.chain for profile in profiles if profile.chain is not None), self._chain)
        in_order = (
            own.get(backend) or self._replacement(backend, card.name) or self._unknown_place(backend, card.name)
            for backend in chain
        )
        return Placement(
            model=card.name,
            card=card,
            places=tuple(filter(None, in_order)),
            local_only=any(profile.local_only for profile in profiles) or self._may_be_private(card.name),
            request=tuple(profile.request for profile in profiles[:1] if profile.request is not None),
        )

    def _replacement(self, backend: str, name: str) -> CatalogBackend | None:
        """A backend without a supervisor that serves a host's model when the host cannot."""
        plain = self._plain.get(backend)
        if plain is None:
            return None
        return plain.replaces(name) or (plain.has(name) if plain.local else None)

    def _unknown_place(self, backend: str, name: str) -> CatalogBackend | None:
        """A host that was never reached, if it may have the model."""
        if backend in self._unknown and self._may_have(backend, name):
            return CatalogBackend(backend=backend, name_there=name)
        return None

    def _may_be_private(self, name: str) -> bool:
        """Whether a host that was never reached may have the model: only its profile says whether it must stay local."""
        return any(backend in self._unknown and self._may_have(backend, name) for backend in self._chain)

    def _with_presets(self, cards: dict[str, ModelCard], names: Names) -> Names:
        """The cards and names with the models that clients created. Names from the configuration take precedence."""
        own = dict(cards)
        added = Names({}, {}, {})
        for name, preset in self._presets.items():
            base = own.get(preset.model)
            if base is None or (name != preset.model and normalized(name) in names.normal):
                continue
            card = cards[name] = preset_card(name, preset, base)
            if name == preset.model:
                card = cards[name] = msgspec.structs.replace(card, aliases=base.aliases)
            added.add(msgspec.structs.replace(names.placements[preset.model], card=card, preset=preset))
        return added.over(names) if self._presets else names

    def _with_variants(self, cards: dict[str, ModelCard], names: Names) -> Names:
        """The cards and names with the variants of the settings, which take precedence over servers' models."""
        added = Names({}, {}, {})
        for name, variant in self._variants.items():
            card = names.index.get(variant.model) or names.normal.get(normalized(variant.model))
            if card is None:
                continue
            base = names.placements[card.name]
            own = cards[name] = variant_card(name, variant, card)
            added.add(msgspec.structs.replace(base, card=own, request=(*base.request, variant.request)))
        return added.over(names) if self._variants else names

    def _may_have(self, backend: str, model: str) -> bool:
        """Whether a host that was never reached may have the model: yes, unless the configuration declares its models."""
        declared = self._declared.get(backend)
        return not declared or model in declared or "*" in declared

    def _running(self, cards: Mapping[str, ModelCard], hosted: Collection[str]) -> str | None:
        """The active model: the last one used while it is loaded, else any loaded one."""
        last = cards.get(self._active) if self._active is not None else None
        if last is not None and last.state in ("loaded", "loading"):
            return last.name
        return next((name for name in sorted(hosted) if cards[name].state == "loaded"), None)

    def _unlisted(self, name: str) -> Placement | None:
        """The placement of a model that is not listed: one of a certain backend (`backend/name`), or of a name that a
        wildcard passes on."""
        backend, slash, rest = name.partition("/")
        places: list[CatalogBackend] = []
        if slash and backend in self._plain and backend in self._chain:
            place = self._plain[backend].has(rest)
            if place is not None:
                places = [place]
        if not places:
            passing = (self._plain[each].passes(name) for each in self._chain if each in self._plain)
            places = [place for place in passing if place is not None]
        if not places:
            return None
        card = self._plain[places[0].backend].card(name, places[0].name_there, since=self._since)
        # Not under the requested name: these names are not bounded, and metrics count requests by model.
        model = f"{places[0].backend}/*"
        return Placement(model=model, card=card, places=tuple(places), local_only=self._may_be_private(name))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
