"""The state of the gateway as values: `GET /admin/status`, the snapshots of `/events`, and the updates between them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from hostler.adapters.model_list import CardState, ModelCard
from hostler.gateway.backends.circuit_breaker import BreakerState, CircuitBreakers
from hostler.gateway.backends.failure_policy import DESCRIPTIONS
from hostler.gateway.backends.hop import Hop
from hostler.gateway.cluster_view import ClusterView
from hostler.gateway.config import FileErrors
from hostler.gateway.context import RequestContext
from hostler.gateway.events import Waiting
from hostler.gateway.in_flight import MAX_LISTED, OtherProcesses, OtherRequests, RequestView, request_views
from hostler.gateway.model_catalog import Catalog
from hostler.gateway.placements import Placement
from hostler.gateway.telemetry.history import Sample
from hostler.supervisor.contract import HostStatus
from hostler.supervisor.scheduling.host import Host


class EngineView(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a host. `idle_until` is when it will be unloaded for idleness, in seconds since the epoch, `tokens_per_s`
    the measured speed of an answer."""

    model: str
    phase: str
    running: int
    parallel: int
    waiting: int
    draining: bool
    load_s: float
    idle_until: float | None = None
    tokens_per_s: float | None = None


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host. `reachable` is false while its supervisor does not answer; `host` is the last known state.

    `queue` holds the waiting requests in the order they will be served.
    """

    backend: str
    reachable: bool
    host: HostStatus | None
    waiting: int
    serving: int
    queue: tuple[Waiting, ...] = ()
    engines: tuple[EngineView, ...] = ()


class BreakerView(msgspec.Struct, frozen=True, kw_only=True):
    """The circuit breaker of a backend, or of one model there. `retry_at` is when the next request may try it, in seconds
    since the epoch; `reason` is why the circuit is open."""

    model: str | None
    state: BreakerState
    retry_at: float | None = None
    reason: str | None = None

    @property
    def allows(self) -> bool:
        """Whether the next request may pass."""
        return self.state != "open" and self.retry_at is None


class BackendView(msgspec.Struct, frozen=True, kw_only=True):
    """A backend of the chain. `wake_on_lan`: a request wakes its machine; `supervised`: a supervisor runs its engines.
    `cost` is today's, in US dollars."""

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
    """The chain, today's cost and the daily limit, in US dollars."""

    hops: tuple[BackendView, ...] = ()
    cost: float = 0.0
    limit: float | None = None

    @property
    def budget_exhausted(self) -> bool:
        """Whether the daily limit is reached, so that only local backends serve requests."""
        return self.limit is not None and self.cost >= self.limit


class StatusView(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the gateway. `recording`: prompts and answers are recorded. `config_errors`: the configuration file has
    mistakes, and its last good state is in use."""

    version: str
    active: str | None
    default: str | None
    models: tuple[ModelCard, ...]
    hosts: tuple[HostView, ...]
    chain: ChainView = ChainView()
    in_flight: tuple[RequestView, ...] = ()
    recording: bool = False
    config_errors: FileErrors | None = None
    cluster: ClusterView | None = None
    at: float = 0.0


class StatusUpdate(msgspec.Struct, frozen=True, kw_only=True, tag="update"):
    """What changes without an event of its own: slots, idle times, requests in flight, circuit breakers, mistakes
    in the configuration file."""

    active: str | None
    hosts: tuple[HostView, ...]
    chain: ChainView
    in_flight: tuple[RequestView, ...]
    config_errors: FileErrors | None = None
    cluster: ClusterView | None = None


class StatusBuilder:
    """Builds status values on request from their owners; holds no state."""

    def __init__(
        self,
        catalog: Catalog,
        hosts: Mapping[str, Host],
        *,
        contexts: Callable[[], Iterable[RequestContext]],
        others: OtherProcesses | None = None,
        elsewhere: Sequence[OtherRequests] = (),
        chain: Callable[[], ChainView],
        config_errors: Callable[[], FileErrors | None] = lambda: None,
        cluster: Callable[[], ClusterView] | None = None,
        gateway: str | None = None,
        version: str,
        recording: bool = False,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._catalog = catalog
        self._hosts = hosts
        self._contexts = contexts
        self._others = others
        self._elsewhere = elsewhere
        self._chain = chain
        self.config_errors = config_errors
        self._cluster = cluster
        self._gateway = gateway
        self._version = version
        self._recording = recording
        self._clock = clock
        self._wall = wall

    def view(self) -> StatusView:
        listing, chain = self._catalog.listing, self._chain()
        reach = {hop.backend: hop for hop in chain.hops}
        return StatusView(
            version=self._version,
            active=listing.active,
            default=listing.default,
            models=tuple(
                msgspec.structs.replace(
                    with_availability(card, self._catalog.find(card.name), reach, chain.budget_exhausted), facts=None
                )
                for card in listing.cards
            ),
            hosts=tuple(self._host(host, whole=True) for host in self._hosts.values()),
            chain=chain,
            in_flight=self.in_flight(),
            recording=self._recording,
            config_errors=self.config_errors(),
            cluster=self.cluster(),
            at=round(self._wall(), 3),
        )

    def update(self) -> StatusUpdate:
        return StatusUpdate(
            active=self._catalog.listing.active,
            hosts=tuple(self._host(host, whole=False) for host in self._hosts.values()),
            chain=self._chain(),
            in_flight=self.in_flight(),
            config_errors=self.config_errors(),
            cluster=self.cluster(),
        )

    def cluster(self) -> ClusterView | None:
        """The cluster, without what changes with each request; `None` for a gateway on its own."""
        return None if self._cluster is None else msgspec.structs.replace(self._cluster(), calls={})

    def sample(self) -> Sample:
        """For the history."""
        hosts = self._hosts.values()
        memory = {
            host.name: sum(model.memory_bytes + model.gpu_bytes for model in host.status.models)
            for host in hosts
            if host.status is not None
        }
        waiting, serving = sum(host.waiting for host in hosts), sum(host.serving for host in hosts)
        return Sample(waiting=waiting, serving=serving, memory=memory)

    def in_flight(self) -> tuple[RequestView, ...]:
        """Requests in flight, the oldest first, without model lists and health checks."""
        views = list(request_views(self._contexts(), self._hosts, offset=self._wall() - self._clock()))
        others = [view for each in self._elsewhere for view in each.views()]
        if others:
            views = sorted((*views, *others), key=lambda view: view.at)[:MAX_LISTED]
        if (gateway := self._gateway) is not None:
            views = [view if view.gateway else msgspec.structs.replace(view, gateway=gateway) for view in views]
        return tuple(views)

    def requests_by_gateway(self) -> Mapping[str, int]:
        """How many requests are in flight at each gateway of the cluster, by its name."""
        own = request_views(self._contexts(), self._hosts, offset=0.0)
        views = [*own, *(view for each in self._elsewhere for view in each.views())]
        return Counter({self._gateway or "": 0}) + Counter(view.gateway or self._gateway or "" for view in views)

    @property
    def is_worker_missing(self) -> bool:
        """Whether a worker process is being started again."""
        return self._others is not None and self._others.serving < self._others.count

    async def refresh(self) -> None:
        """Bring the state up to date, as far as other processes have it."""
        for each in self._elsewhere:
            await each.refresh()

    def _host(self, host: Host, *, whole: bool) -> HostView:
        # Rounded, so that an unchanged state encodes to the same bytes.
        offset = self._wall() - self._clock()
        return HostView(
            backend=host.name,
            reachable=host.reachable,
            host=without_facts(host.status) if whole else None,
            waiting=host.waiting,
            serving=host.serving,
            queue=tuple(host.queue()) if whole else (),
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
                    tokens_per_s=None if each.tokens_per_s is None else round(each.tokens_per_s, 1),
                )
                for each in host.models()
            ),
        )


def with_availability(
    card: ModelCard, placement: Placement, reach: Mapping[str, BackendView], budget_exhausted: bool
) -> ModelCard:
    """The card with its state where no reachable supervisor has the model: `available` from another backend, `unloaded` on
    a machine that a request wakes, or `unavailable`, with the reason."""
    problems, others, wakes = [], [], []
    for place in placement.places:
        hop = reach.get(place.backend)
        if hop is None:
            continue
        problem = _problem(hop, place.name_there, budget_exhausted=budget_exhausted, local_only=placement.local_only)
        if problem is not None:
            problems.append(f"{hop.backend} {problem}")
        elif not hop.supervised:
            others.append(hop.backend)
        elif hop.reachable:
            return card
        else:
            wakes.append(f"{hop.backend} is unreachable; a request wakes it")
    state: CardState = "available" if others else "unloaded" if wakes else "unavailable"
    message = "; ".join((*problems, *wakes)) or (None if others else "no backend of the chain has it")
    if others and message is not None:
        message = f"{message}; served by {others[0]}"
    return msgspec.structs.replace(
        card, state=state, failure=message, percent=None, memory_bytes=0, gpu_bytes=0, expires_at=None
    )


def _problem(hop: BackendView, name_there: str, *, budget_exhausted: bool, local_only: bool) -> str | None:
    """The reason why requests for this model are not sent there; `None` if they are."""
    if local_only and not hop.local:
        return DESCRIPTIONS["non_local"]
    if budget_exhausted and not hop.local:
        return DESCRIPTIONS["budget_exhausted"]
    if hop.supervised:
        return None if hop.reachable or hop.wake_on_lan else "is unreachable"
    for breaker in (hop.breaker, *(each for each in hop.models if each.model == name_there)):
        if not breaker.allows:
            return breaker.reason or DESCRIPTIONS["circuit_open"]
    return None


def without_facts(host: HostStatus | None) -> HostStatus | None:
    """The status without the models' GGUF metadata, which is long and constant."""
    if host is None:
        return None
    profiles = tuple(msgspec.structs.replace(profile, facts=None) for profile in host.profiles)
    return msgspec.structs.replace(host, profiles=profiles)


def chain_view(hops: Mapping[str, Hop], kinds: Mapping[str, str], *, now: float, wall: float) -> ChainView:
    """The chain in the order of `kinds`, which maps every backend to its kind."""
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
                breaker=_breaker(None, hop.breakers, now, wall),
                models=tuple(_breaker(model, hop.breakers, now, wall) for model in hop.breakers.models),
                cost=None if hop.local else round(costs.get(name, 0.0), 4),
                wake_on_lan=hop.wake_on_lan is not None,
                supervised=hop.supervised,
            )
        )
    if spending is None:
        return ChainView(hops=tuple(views))
    return ChainView(hops=tuple(views), cost=round(spending.today, 4), limit=spending.limit)


def _breaker(model: str | None, breakers: CircuitBreakers, now: float, wall: float) -> BreakerView:
    breaker = breakers.host if model is None else breakers.models[model]
    retry_in, why = breaker.retry_in(now), breakers.last_failure(model)
    view = BreakerView(
        model=model, state=breaker.state(now), retry_at=round(wall + retry_in, 1) if retry_in > 0 else None
    )
    return view if view.allows or why is None else msgspec.structs.replace(view, reason=DESCRIPTIONS[why])


def _at(at: float | None, offset: float) -> float | None:
    """A time of the gateway's clock in seconds since the epoch; `None` if it is not finite."""
    return None if at is None or not math.isfinite(at) else round(at + offset, 1)
