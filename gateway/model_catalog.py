"""The models, their names, and the backends of each: an immutable snapshot that is replaced as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence

import anyio
import msgspec

from hostler.adapters.errors import BadRequest, ModelNotFound
from hostler.adapters.model_list import CardState, ModelCard, ModelList
from hostler.adapters.model_names import normalized
from hostler.gateway.config import BackendSettings
from hostler.gateway.events import printable
from hostler.profiles.capabilities import lacking
from hostler.profiles.presets import Preset
from hostler.supervisor.contract import AnswerLimits, HostStatus, ModelStatus, ProfileInfo, State


class CatalogBackend(msgspec.Struct, frozen=True, kw_only=True):
    """A backend of a model, the model's name there, its context there (0: unknown), and what it certainly cannot do.

    `hosted`: it has a supervisor, which may have to load the model. `limits` are those of its profile there.
    """

    backend: str
    name_there: str
    context: int = 0
    hosted: bool = False
    lacks: frozenset[str] = frozenset()
    limits: AnswerLimits | None = None


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """A model, its card, and its backends in the order of the chain.

    `local_only`: requests for it are served by local backends only, also while a host that may have it was never reached,
    since only its profile knows. With a `preset` the requested name is the preset's,
    and `model` the model it was created from.
    """

    model: str
    card: ModelCard
    places: tuple[CatalogBackend, ...]
    local_only: bool = False
    preset: Preset | None = None


def with_unload_times(listing: ModelList, ends: Mapping[str, float]) -> ModelList:
    """The listing with `ends`: when idle models will be unloaded, in seconds since the epoch."""
    return _changed(listing, {name: {"expires_at": end} for name, end in ends.items()})


def with_unknown_states(listing: ModelList, models: Collection[str]) -> ModelList:
    """The listing without knowledge of what these models do: their hosts cannot be reached."""
    return _changed(listing, {model: {"state_known": False} for model in models})


def _changed(listing: ModelList, fields: Mapping[str, Mapping[str, object]]) -> ModelList:
    """The listing with these fields of the cards of these models, and of those that run as them."""
    changed = {
        card.name: msgspec.structs.replace(card, **fields[runs])
        for card in listing.cards
        if (runs := card.preset.model if card.preset is not None else card.name) in fields
    }
    if not changed:
        return listing
    return msgspec.structs.replace(
        listing,
        cards=tuple(changed.get(card.name, card) for card in listing.cards),
        index={spelling: changed.get(card.name, card) for spelling, card in listing.index.items()},
    )


_CARD_STATES: dict[State, CardState] = {
    "stopped": "unloaded",
    "starting": "loading",
    "ready": "loaded",
    "stopping": "unloaded",
    "backoff": "failed",
    "failed": "failed",
}

#: A model on several hosts is listed with the best of its states.
_BEST_FIRST: tuple[CardState, ...] = ("loaded", "loading", "sleeping", "unloaded", "failed")

#: Names listed in an error message.
MAX_NAMES = 20


class Catalog:
    """Owner of the snapshot. `since`, in seconds since the epoch, is the creation time of models known by name only."""

    def __init__(
        self,
        backends: Mapping[str, BackendSettings],
        chain: Sequence[str],
        *,
        version: str,
        presets: Mapping[str, Preset] | None = None,
        since: float = 0.0,
    ) -> None:
        self._since = int(since)
        self._plain = {name: backend for name, backend in backends.items() if backend.kind != "supervisor"}
        self._chain = tuple(chain)
        self._version = version
        self._unknown = {name for name in (*backends, *chain) if name not in self._plain}
        self._declared = {name: backend.models for name, backend in backends.items() if backend.kind == "supervisor"}
        self._hosts: dict[str, HostStatus] = {}
        self._active: str | None = None
        self._presets = dict(presets or {})
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
        if profiles and backend in self._unknown:
            self._hosts[backend] = HostStatus(profiles=profiles)
            self._unknown.discard(backend)
            self._rebuild()

    @property
    def unknown_hosts(self) -> frozenset[str]:
        """Hosts that were never reached: nothing is known about their models."""
        return frozenset(self._unknown)

    def set_presets(self, presets: Mapping[str, Preset]) -> None:
        """Replace the models that clients created from others."""
        self._presets = dict(presets)
        self._rebuild()

    async def wait_until(self, condition: Callable[[ModelList], bool]) -> None:
        """Wait until the snapshot fulfils `condition`."""
        while not condition(self._listing):
            await self._changed.wait()

    def set_active(self, model: str) -> None:
        """`model` is in use: it serves requests that name no model."""
        if model != self._active:
            self._active = model
            self._rebuild()

    def find(self, name: str | None) -> Placement:
        """The model of this name or alias, in any spelling; for `None` the active or default one.

        Raises `ModelNotFound` with the known names, or `BadRequest` if none is named and none is active.
        """
        if name is None:
            name = self._listing.active or self._listing.default
            if name is None:
                raise BadRequest(f'no model named and none loaded; set "model": {self._known_names()}', param="model")
        placement = self._placements.get(name)
        if placement is None:
            card = self._listing.resolve(name)
            placement = self._placements.get(card.name) if card is not None else None
        if placement is None:
            raise ModelNotFound(
                f"the model `{printable(name, 100)}` does not exist; {self._known_names()}", model=name, param="model"
            )
        return placement

    def _known_names(self) -> str:
        names = self._listing.names()
        if not names:
            return "no models are configured, or their host has not been reached yet"
        more = len(names) - MAX_NAMES
        shown = ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
        return f"{len(names)} models: {shown}" if len(names) > 1 else f"the only model: {shown}"

    def _rebuild(self) -> None:
        cards: dict[str, ModelCard] = {}
        places: dict[str, list[CatalogBackend]] = {}
        default: str | None = None
        for backend in self._chain:
            host = self._hosts.get(backend)
            if host is None:
                continue
            statuses = {status.model: status for status in host.models}
            for profile in host.profiles:
                card = _card(profile, statuses.get(profile.name))
                known = cards.get(profile.name)
                cards[profile.name] = card if known is None else _merge(known, card)
                places.setdefault(profile.name, []).append(
                    CatalogBackend(
                        backend=backend,
                        name_there=profile.name,
                        context=profile.context,
                        hosted=True,
                        lacks=lacking(profile.facts, embeddings=profile.embeddings),
                        limits=profile.limits,
                    )
                )
                if profile.default and default is None:
                    default = profile.name
        for backend_settings in self._plain.values():
            for model in backend_settings.models:
                if model != "*" and model not in cards:
                    context = backend_settings.context or 0
                    cards[model] = ModelCard(
                        name=model, state="loaded", state_known=False, context=context, created=self._since
                    )
        for backend in self._chain:
            if backend in self._unknown:
                for model in self._declared.get(backend, ()):
                    if model != "*" and model not in cards:
                        cards[model] = ModelCard(name=model, state="unloaded", created=self._since)
        self._active = self._running(cards)
        self._add_presets(cards)
        index, placements = self._index(cards, places)
        first = self._active or default
        ordered = tuple(sorted(cards.values(), key=lambda card: (card.name != first, card.name)))
        self._placements = placements
        self._listing = ModelList(
            cards=ordered, index=index, active=self._active, default=default, version=self._version
        )
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _add_presets(self, cards: dict[str, ModelCard]) -> None:
        """The cards of models that clients created. Names from the configuration take precedence."""
        taken = {normalized(name): card.name for card in cards.values() for name in (card.name, *card.aliases)}
        own = dict(cards)
        for name, preset in self._presets.items():
            base = own.get(preset.model)
            if base is None or (name != preset.model and normalized(name) in taken):
                continue
            cards[name] = _preset_card(name, preset, base)

    def _may_have(self, backend: str, model: str) -> bool:
        """Whether a host that was never reached may have the model: yes, unless the configuration declares its models."""
        declared = self._declared.get(backend)
        return not declared or model in declared or "*" in declared

    def _running(self, cards: Mapping[str, ModelCard]) -> str | None:
        """The active model: the last one used while it is loaded, else any loaded one."""
        last = cards.get(self._active) if self._active is not None else None
        if last is not None and last.state in ("loaded", "loading"):
            return last.name
        hosted = {profile.name for host in self._hosts.values() for profile in host.profiles}
        return next((name for name, card in sorted(cards.items()) if card.state == "loaded" and name in hosted), None)

    def _index(
        self, cards: Mapping[str, ModelCard], places: Mapping[str, list[CatalogBackend]]
    ) -> tuple[dict[str, ModelCard], dict[str, Placement]]:
        index: dict[str, ModelCard] = {}
        placements: dict[str, Placement] = {}
        presets = {
            name: card.preset for name, card in cards.items() if card.preset is not None and card.preset.model != name
        }
        for name, card in cards.items():
            if name in presets:
                continue
            hosted = {place.backend: place for place in places.get(name, [])}
            profiles = [host.profiles for host in map(self._hosts.get, self._chain) if host is not None]
            described = [profile for each in profiles for profile in each if profile.name == name]
            chain = next((profile.chain for profile in described if profile.chain is not None), self._chain)
            in_order = []
            for backend in chain:
                if backend in hosted:
                    in_order.append(hosted[backend])
                elif backend in self._plain:
                    plain = self._plain[backend]
                    there = plain.models.get(name) or plain.models.get("*")
                    if there:
                        in_order.append(CatalogBackend(backend=backend, name_there=there, context=plain.context or 0))
                elif backend in self._unknown and self._may_have(backend, name):
                    in_order.append(CatalogBackend(backend=backend, name_there=name))
            local_only = any(profile.local_only for profile in described) or any(
                backend in self._unknown and self._may_have(backend, name) for backend in self._chain
            )
            placement = Placement(
                model=name, card=card, places=tuple(in_order), local_only=local_only, preset=card.preset
            )
            for spelling in (name, *card.aliases):
                for accepted in (spelling, f"{spelling}:latest"):
                    index.setdefault(accepted, card)
                    placements.setdefault(accepted, placement)
        for name, preset in presets.items():
            card = cards[name]
            placement = msgspec.structs.replace(placements[preset.model], card=card, preset=preset)
            for accepted in (name, f"{name}:latest"):
                index.setdefault(accepted, card)
                placements.setdefault(accepted, placement)
        return index, placements


def _card(profile: ProfileInfo, status: ModelStatus | None) -> ModelCard:
    return ModelCard(
        name=profile.name,
        aliases=profile.aliases,
        state=_CARD_STATES[status.state] if status else "unloaded",
        context=profile.context,
        parallel=profile.parallel,
        created=int(profile.modified_at),
        modified_at=profile.modified_at,
        size=profile.size,
        digest=profile.digest,
        facts=profile.facts,
        capabilities=_capabilities(profile),
        description=profile.description,
        listed=profile.listed,
        memory_bytes=status.memory_bytes if status else 0,
        gpu_bytes=status.gpu_bytes if status else 0,
        failure=status.failure.message if status and status.failure else None,
        percent=status.percent if status and status.state == "starting" else None,
    )


def _capabilities(profile: ProfileInfo) -> tuple[str, ...]:
    if profile.facts is not None:
        return profile.facts.capabilities
    return ("embedding",) if profile.embeddings else ("completion",)


def _preset_card(name: str, preset: Preset, base: ModelCard) -> ModelCard:
    """The card of a model that a client created from another. A plain copy keeps the digest."""
    digest = base.digest
    if preset.changes_requests or preset.license:
        settings = msgspec.json.encode(msgspec.structs.replace(preset, created_at=0.0))
        digest = hashlib.sha256(base.digest.encode() + settings).hexdigest()
    return msgspec.structs.replace(
        base,
        name=name,
        aliases=(),
        listed=True,
        digest=digest,
        created=int(preset.created_at),
        modified_at=preset.created_at,
        preset=preset,
    )


def _merge(one: ModelCard, other: ModelCard) -> ModelCard:
    """The same model on two hosts: the better state, and the smaller context, which both have."""
    better = min((one, other), key=lambda card: _BEST_FIRST.index(card.state))
    return msgspec.structs.replace(better, context=min(one.context, other.context))
