"""The whole gateway at one moment, as values: for `GET /admin/status`, for the page, and what moves between two events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from hostler.adapters.model_list import CardState, ModelCard
from hostler.adapters.types import ModelInfoRequest
from hostler.gateway.backends.chain import Hop
from hostler.gateway.backends.circuit_breaker import BreakerState, CircuitBreakers
from hostler.gateway.backends.failure_policy import WORDS
from hostler.gateway.catalog import Catalog, Placement
from hostler.gateway.context import RequestContext
from hostler.gateway.events import Waiting
from hostler.gateway.scheduling.orchestrator import Orchestrator
from hostler.gateway.telemetry.history import Moment
from hostler.supervisor.contract import HostStatus

#: As many requests in flight are shown.
_MAX_IN_FLIGHT = 200


class EngineView(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a host as the gateway uses it. `idle_until` is when it will be unloaded, in seconds since the epoch."""

    model: str
    phase: str
    running: int
    parallel: int
    waiting: int
    draining: bool
    load_s: float
    idle_until: float | None = None


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host in the status. `reachable` is false while its supervisor does not answer; `host` is the last known.

    `queue` is who waits, in the order of service.
    """

    backend: str
    reachable: bool
    host: HostStatus | None
    waiting: int
    serving: int
    queue: tuple[Waiting, ...] = ()
    engines: tuple[EngineView, ...] = ()


class BreakerView(msgspec.Struct, frozen=True, kw_only=True):
    """A breaker, of a backend or of a model there. `retry_at` is when it is tried again, in seconds since the epoch, and
    `reason` what is held against it until then."""

    model: str | None
    state: BreakerState
    retry_at: float | None = None
    reason: str | None = None

    @property
    def allows(self) -> bool:
        """Whether the next request is let through."""
        return self.state != "open" and self.retry_at is None


class BackendView(msgspec.Struct, frozen=True, kw_only=True):
    """A backend in the order of the chain. `wake_on_lan`: a request wakes its machine; `supervised`: engines
    of ours answer. Costs in US dollars, of today."""

    backend: str
    kind: str
    local: bool
    reachable: bool
    breaker: BreakerView
    models: tuple[BreakerView, ...] = ()
    cost: float | None = None
    wake_on_lan: bool = False
    supervised: bool = False


class ChainView(msgspec.Struct, frozen=True, kw_only=True):
    """The chain, and what it has cost today against the limit."""

    hops: tuple[BackendView, ...] = ()
    cost: float = 0.0
    limit: float | None = None

    @property
    def spent(self) -> bool:
        """Whether nothing may leave the house any more that costs money."""
        return self.limit is not None and self.cost >= self.limit


class RequestView(msgspec.Struct, frozen=True, kw_only=True):
    """A request on its way; `at` is its arrival. `phase`: `waiting` for its model, `prefill`, or `generating`."""

    id: str
    at: float
    protocol: str
    operation: str
    client: str
    phase: str
    requested_model: str | None = None
    model: str | None = None
    backend: str | None = None
    hop: int = 0
    reason: str = ""
    queue_s: float = 0.0
    switch_s: float = 0.0
    first_token_s: float | None = None


class StatusView(msgspec.Struct, frozen=True, kw_only=True):
    """The whole gateway at one moment, as `GET /admin/status` tells it. `recording`: prompts and answers are kept."""

    version: str
    active: str | None
    default: str | None
    models: tuple[ModelCard, ...]
    hosts: tuple[HostView, ...]
    chain: ChainView = ChainView()
    in_flight: tuple[RequestView, ...] = ()
    recording: bool = False
    at: float = 0.0


class StatusUpdate(msgspec.Struct, frozen=True, kw_only=True, tag="update"):
    """What changes without an event of its own: slots, idle times, requests on their way, breakers."""

    active: str | None
    hosts: tuple[HostView, ...]
    chain: ChainView
    in_flight: tuple[RequestView, ...]


class Status:
    """Puts the view together when somebody looks. It owns nothing."""

    def __init__(
        self,
        catalog: Catalog,
        hosts: Mapping[str, Orchestrator],
        *,
        contexts: Callable[[], Iterable[RequestContext]],
        chain: Callable[[], ChainView],
        version: str,
        recording: bool = False,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._catalog = catalog
        self._hosts = hosts
        self._exchanges = contexts
        self._chain = chain
        self._version = version
        self._recording = recording
        self._clock = clock
        self._wall = wall

    def view(self) -> StatusView:
        """Everything, now."""
        listing, chain = self._catalog.listing, self._chain()
        reach = {hop.backend: hop for hop in chain.hops}
        return StatusView(
            version=self._version,
            active=listing.active,
            default=listing.default,
            models=tuple(
                msgspec.structs.replace(as_it_is(card, self._catalog.find(card.name), reach, chain.spent), facts=None)
                for card in listing.cards
            ),
            hosts=tuple(self._host(host, whole=True) for host in self._hosts.values()),
            chain=chain,
            in_flight=self.in_flight(),
            recording=self._recording,
            at=round(self._wall(), 3),
        )

    def update(self) -> StatusUpdate:
        """What changes all the time."""
        return StatusUpdate(
            active=self._catalog.listing.active,
            hosts=tuple(self._host(host, whole=False) for host in self._hosts.values()),
            chain=self._chain(),
            in_flight=self.in_flight(),
        )

    def moment(self) -> Moment:
        """For the history."""
        hosts = self._hosts.values()
        memory = {
            host.name: sum(model.memory_bytes + model.gpu_bytes for model in host.status.models)
            for host in hosts
            if host.status is not None
        }
        waiting, serving = sum(host.waiting for host in hosts), sum(host.serving for host in hosts)
        return Moment(waiting=waiting, serving=serving, memory=memory)

    def in_flight(self) -> tuple[RequestView, ...]:
        """The requests on their way, the oldest first; probes are over before anybody could look."""
        offset = self._wall() - self._clock()
        views: list[RequestView] = []
        for context in self._exchanges():
            if len(views) == _MAX_IN_FLIGHT:
                break
            if not isinstance(context.request, ModelInfoRequest):
                views.append(self._request(context, offset))
        return tuple(views)

    def _request(self, context: RequestContext, offset: float) -> RequestView:
        attempt = context.attempt
        first = None if attempt is None else attempt.first_token_at
        if first is not None:
            phase = "generating"
        elif attempt is None or (attempt.target.backend in self._hosts and attempt.address is None):
            phase = "waiting"
        else:
            phase = "prefill"
        return RequestView(
            id=context.id,
            at=round(context.started_at + offset, 2),
            protocol=context.adapter.name,
            operation=context.operation.name,
            client=context.client.name,
            phase=phase,
            requested_model=context.requested_model,
            model=context.model,
            backend=None if attempt is None else attempt.target.backend,
            hop=context.hop,
            reason=context.reason,
            queue_s=round(context.queue_s, 3),
            switch_s=round(context.switch_s, 3),
            first_token_s=None if first is None else round(first - context.started_at, 3),
        )

    def _host(self, host: Orchestrator, *, whole: bool) -> HostView:
        # To a tenth: what does not change should look the same the next time.
        offset = self._wall() - self._clock()
        return HostView(
            backend=host.name,
            reachable=host.reachable,
            host=without_facts(host.status) if whole else None,
            waiting=host.waiting,
            serving=host.serving,
            queue=host.queue() if whole else (),
            engines=tuple(
                EngineView(
                    model=each.model,
                    phase=each.phase,
                    running=each.running,
                    parallel=each.parallel,
                    waiting=each.waiting,
                    draining=each.draining,
                    load_s=round(each.load_s, 2),
                    idle_until=_at(each.idle_until, offset),
                )
                for each in host.view().models
            ),
        )


def as_it_is(card: ModelCard, placement: Placement, reach: Mapping[str, BackendView], spent: bool) -> ModelCard:
    """The card with what can be done for it now, if no supervisor answers that has the model: `available` from a backend
    that loads nothing, or `unavailable`, and why. A machine that a request wakes has it `unloaded`."""
    troubles, others, wakes = [], [], []
    for place in placement.places:
        hop = reach.get(place.backend)
        if hop is None:
            continue
        trouble = _trouble(hop, place.name_there, spent=spent, local_only=placement.local_only)
        if trouble is not None:
            troubles.append(f"{hop.backend} {trouble}")
        elif not hop.supervised:
            others.append(hop.backend)
        elif hop.reachable:
            return card
        else:
            wakes.append(f"{hop.backend} does not answer; a request wakes it")
    state: CardState = "available" if others else "unloaded" if wakes else "unavailable"
    said = "; ".join((*troubles, *wakes)) or (None if others else "no backend of the chain has it")
    if others and said is not None:
        said = f"{said}; {others[0]} answers instead"
    return msgspec.structs.replace(
        card, state=state, failure=said, percent=None, memory_bytes=0, gpu_bytes=0, expires_at=None
    )


def _trouble(hop: BackendView, name_there: str, *, spent: bool, local_only: bool) -> str | None:
    """Why a request for this model would not be sent there, if so."""
    if local_only and not hop.local:
        return WORDS["non_local"]
    if spent and not hop.local:
        return WORDS["budget_exhausted"]
    if hop.supervised:
        return None if hop.reachable or hop.wake_on_lan else "does not answer"
    for breaker in (hop.breaker, *(each for each in hop.models if each.model == name_there)):
        if not breaker.allows:
            return breaker.reason or WORDS["circuit_open"]
    return None


def without_facts(host: HostStatus | None) -> HostStatus | None:
    """The status without what the models' files say of themselves, which is long and no news."""
    if host is None:
        return None
    profiles = tuple(msgspec.structs.replace(profile, facts=None) for profile in host.profiles)
    return msgspec.structs.replace(host, profiles=profiles)


def chain_view(hops: Mapping[str, Hop], kinds: Mapping[str, str], *, now: float, wall: float) -> ChainView:
    """The chain in the order of `kinds`, which names the kind of every backend in it."""
    spending = next((hop.spending for hop in hops.values() if hop.spending is not None), None)
    costs = {} if spending is None else spending.by_backend
    views = []
    for name, kind in kinds.items():
        hop = hops.get(name)
        if hop is None:
            continue
        views.append(
            BackendView(
                backend=name,
                kind=kind,
                local=hop.local,
                reachable=hop.reachable(),
                breaker=_breaker(None, hop.standing, now, wall),
                models=tuple(_breaker(model, hop.standing, now, wall) for model in hop.standing.models),
                cost=None if hop.local else round(costs.get(name, 0.0), 4),
                wake_on_lan=hop.waker is not None,
                supervised=hop.supervised,
            )
        )
    if spending is None:
        return ChainView(hops=tuple(views))
    return ChainView(hops=tuple(views), cost=round(spending.today, 4), limit=spending.limit)


def _breaker(model: str | None, standing: CircuitBreakers, now: float, wall: float) -> BreakerView:
    breaker = standing.host if model is None else standing.models[model]
    retry_in, why = breaker.retry_in(now), standing.why(model)
    view = BreakerView(
        model=model, state=breaker.state(now), retry_at=round(wall + retry_in, 1) if retry_in > 0 else None
    )
    return view if view.allows or why is None else msgspec.structs.replace(view, reason=WORDS[why])


def _at(at: float | None, offset: float) -> float | None:
    """A time of the gateway's clock in seconds since the epoch, if there is one."""
    return None if at is None or not math.isfinite(at) else round(at + offset, 1)
