"""Which models exist, under which names, and where each could run: one immutable snapshot, replaced whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import anyio
import msgspec

from hostler.adapters.errors import BadRequest, ModelNotFound
from hostler.adapters.model_list import CardState, ModelCard, ModelList
from hostler.adapters.model_names import folded
from hostler.gateway.config import BackendSettings
from hostler.gateway.events import printable
from hostler.profiles.presets import Preset
from hostler.supervisor.contract import HostStatus, ModelStatus, ProfileInfo, State


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A backend that could answer for a model, what it calls the model, and the context there (0: not known)."""

    backend: str
    name_there: str
    context: int = 0


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """A model under its own name, what clients may see of it, and its places in the order of the chain.

    `local_only`: requests for it must not leave the house. `preset` is what the name adds that was asked for: the model
    itself is the one that the preset was made of.
    """

    model: str
    card: ModelCard
    places: tuple[Place, ...]
    local_only: bool = False
    preset: Preset | None = None


def with_ends(listing: ModelList, ends: Mapping[str, float]) -> ModelList:
    """The listing with the moments, in seconds since the epoch, at which idle models will be unloaded."""
    changed = {
        card.name: msgspec.structs.replace(card, expires_at=ends[runs])
        for card in listing.cards
        if (runs := card.preset.model if card.preset is not None else card.name) in ends
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

#: Where a model runs on several hosts, the best of its states is shown.
_BEST_FIRST: tuple[CardState, ...] = ("loaded", "loading", "sleeping", "unloaded", "failed")

#: As many names as a person reads in an error.
NAMES_SHOWN = 20


class Catalog:
    """Keeps the snapshot. Its writers tell it of hosts (`host`, `remembered`), of use (`used`) and of what clients made (`made`);
    everybody else reads. A model of which only the name is known counts as made at `since`, in seconds since the epoch."""

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
        self._silent = {name for name in (*backends, *chain) if name not in self._plain}
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
        """The snapshot. It never changes; ask again for a newer one."""
        return self._listing

    def host(self, backend: str, status: HostStatus) -> None:
        """What the supervisor `backend` says of itself. A host that falls silent keeps what was last known."""
        self._hosts[backend] = status
        self._silent.discard(backend)
        self._rebuild()

    def remembered(self, backend: str, profiles: tuple[ProfileInfo, ...]) -> None:
        """What a host had that has not been heard of yet: it may sleep, and a request for one of these may wake it."""
        if profiles and backend in self._silent:
            self._hosts[backend] = HostStatus(profiles=profiles)
            self._silent.discard(backend)
            self._rebuild()

    def made(self, presets: Mapping[str, Preset]) -> None:
        """These are the models that clients made of others."""
        self._presets = dict(presets)
        self._rebuild()

    async def until(self, condition: Callable[[ModelList], bool]) -> None:
        """Wait until the snapshot is so."""
        while not condition(self._listing):
            await self._changed.wait()

    def used(self, model: str) -> None:
        """`model` is being used: it is the active one, which requests without a model's name go to."""
        if model != self._active:
            self._active = model
            self._rebuild()

    def find(self, name: str | None) -> Placement:
        """Where the model of this name or alias, in any spelling, or (`None`) the active or default one could run.

        Raises `ModelNotFound` with the names that do exist, or `BadRequest` if none is named and none is active.
        """
        if name is None:
            name = self._listing.active or self._listing.default
            if name is None:
                raise BadRequest(
                    f'no model is named and none is running; name one in "model": {self._known()}', param="model"
                )
        placement = self._placements.get(name)
        if placement is None:
            card = self._listing.resolve(name)
            placement = self._placements.get(card.name) if card is not None else None
        if placement is None:
            raise ModelNotFound(
                f"the model `{printable(name, 100)}` does not exist; {self._known()}", model=name, param="model"
            )
        return placement

    def _known(self) -> str:
        names = self._listing.names()
        if not names:
            return "no models are configured, or their host has not answered yet"
        more = len(names) - NAMES_SHOWN
        shown = ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        return f"{len(names)} models are: {shown}" if len(names) > 1 else f"the only model is: {shown}"

    def _rebuild(self) -> None:
        cards: dict[str, ModelCard] = {}
        places: dict[str, list[Place]] = {}
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
                    Place(backend=backend, name_there=profile.name, context=profile.context)
                )
                if profile.default and default is None:
                    default = profile.name
        for backend_settings in self._plain.values():
            for model in backend_settings.models:
                if model != "*" and model not in cards:
                    context = backend_settings.context or 0
                    cards[model] = ModelCard(name=model, state="loaded", context=context, created=self._since)
        for backend in self._chain:
            if backend in self._silent:
                for model in self._declared.get(backend, ()):
                    if model != "*" and model not in cards:
                        cards[model] = ModelCard(name=model, state="unloaded", created=self._since)
        self._active = self._running(cards)
        self._add_made(cards)
        index, placements = self._index(cards, places)
        first = self._active or default
        ordered = tuple(sorted(cards.values(), key=lambda card: (card.name != first, card.name)))
        self._placements = placements
        self._listing = ModelList(
            cards=ordered, index=index, active=self._active, default=default, version=self._version
        )
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _add_made(self, cards: dict[str, ModelCard]) -> None:
        """The cards of models that were made of these. A name of the configuration goes before one that was made."""
        taken = {folded(name): card.name for card in cards.values() for name in (card.name, *card.aliases)}
        own = dict(cards)
        for name, preset in self._presets.items():
            base = own.get(preset.model)
            if base is None or (name != preset.model and folded(name) in taken):
                continue
            cards[name] = _made(name, preset, base)

    def _may_have(self, backend: str, model: str) -> bool:
        """Nothing was ever heard of it: it may sleep, and may have the model, unless the configuration says what it has."""
        declared = self._declared.get(backend)
        return not declared or model in declared or "*" in declared

    def _running(self, cards: Mapping[str, ModelCard]) -> str | None:
        """The active model: the one used last as long as it runs, else any that does."""
        last = cards.get(self._active) if self._active is not None else None
        if last is not None and last.state in ("loaded", "loading"):
            return last.name
        hosted = {profile.name for host in self._hosts.values() for profile in host.profiles}
        return next((name for name, card in sorted(cards.items()) if card.state == "loaded" and name in hosted), None)

    def _index(
        self, cards: Mapping[str, ModelCard], places: Mapping[str, list[Place]]
    ) -> tuple[dict[str, ModelCard], dict[str, Placement]]:
        index: dict[str, ModelCard] = {}
        placements: dict[str, Placement] = {}
        of_others = {
            name: card.preset for name, card in cards.items() if card.preset is not None and card.preset.model != name
        }
        for name, card in cards.items():
            if name in of_others:
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
                        in_order.append(Place(backend=backend, name_there=there, context=plain.context or 0))
                elif backend in self._silent and self._may_have(backend, name):
                    in_order.append(Place(backend=backend, name_there=name))
            local_only = any(profile.local_only for profile in described)
            placement = Placement(
                model=name, card=card, places=tuple(in_order), local_only=local_only, preset=card.preset
            )
            for spelling in (name, *card.aliases):
                for accepted in (spelling, f"{spelling}:latest"):
                    index.setdefault(accepted, card)
                    placements.setdefault(accepted, placement)
        for name, preset in of_others.items():
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
        capabilities=profile.facts.capabilities if profile.facts else ("completion",),
        description=profile.description,
        listed=profile.listed,
        memory_bytes=status.memory_bytes if status else 0,
        gpu_bytes=status.gpu_bytes if status else 0,
        failure=status.failure.message if status and status.failure else None,
        percent=status.percent if status and status.state == "starting" else None,
    )


def _made(name: str, preset: Preset, base: ModelCard) -> ModelCard:
    """The card of a model that a client made of another one. A mere copy is the same file with the same settings."""
    digest = base.digest
    if preset.speaks or preset.license:
        said = msgspec.json.encode(msgspec.structs.replace(preset, made_at=0.0))
        digest = hashlib.sha256(base.digest.encode() + said).hexdigest()
    return msgspec.structs.replace(
        base,
        name=name,
        aliases=(),
        listed=True,
        digest=digest,
        created=int(preset.made_at),
        modified_at=preset.made_at,
        preset=preset,
    )


def _merge(one: ModelCard, other: ModelCard) -> ModelCard:
    """The same model on two hosts: the better state counts, and the smaller context, which both can keep."""
    better = min((one, other), key=lambda card: _BEST_FIRST.index(card.state))
    return msgspec.structs.replace(better, context=min(one.context, other.context))
