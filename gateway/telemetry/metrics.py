"""The gateway's metrics for Prometheus: counted from events, or read from their owners when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import get_args

import msgspec

from hostler.gateway.cluster_view import ClusterView, ConfigurationKind
from hostler.gateway.context import RequestOutcome
from hostler.gateway.events import (
    BreakerChanged,
    EngineChanged,
    Event,
    FinishedElsewhere,
    HostChanged,
    RequestFinished,
    SwitchChanged,
)
from hostler.supervisor.contract import ModelLease, ModelStatus, SwitchMoved
from hostler.supervisor.instruments import Counter, Gauge, Histogram, Instrument, exposition

#: Other gateways that are counted, at most, and outcomes: both come from outside.
_MAX_GATEWAYS = 256
_OUTCOMES = get_args(RequestOutcome)

_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)

_BREAKERS = ("closed", "open", "half_open")

#: Error codes counted in `hostler_rejected_total`: refused before any backend was tried.
_REJECTIONS = ("queue_full", "wait_limit_reached", "model_not_available", "shutting_down")

#: Outcomes of attempts that alerts watch for: exposed as 0 until they happen.
_ALERTED = ("auth_failed", "payment_required")


class BackendGauges(msgspec.Struct, frozen=True, kw_only=True):
    """The current values of a backend. `breakers` are states by model; the backend's own is under `""`."""

    backend: str
    reachable: bool
    breakers: Mapping[str, str]
    cost: float | None = None


class ChainGauges(msgspec.Struct, frozen=True, kw_only=True):
    """The current values of all backends, and the daily cost limit in US dollars."""

    backends: Sequence[BackendGauges] = ()
    limit: float | None = None


class GatewayMetrics:
    """Pass every event to `on_event`; `render` is the text of `/metrics`.

    `queues` yields backend, waiting and running requests; `chain` returns the backends' current values, `cluster`
    those of the cluster, if there is one, `workers` how many worker processes serve requests, and how many were replaced.
    All are called by `render`. Labels take model names from the catalog only, so that clients cannot create series.
    """

    def __init__(
        self,
        queues: Callable[[], Iterable[tuple[str, int, int]]],
        chain: Callable[[], ChainGauges] = ChainGauges,
        cluster: Callable[[], ClusterView] | None = None,
        workers: Callable[[], tuple[int, int]] | None = None,
        *,
        version: str = "",
    ) -> None:
        self._queues = queues
        self._chain = chain
        self._cluster = cluster
        self._workers = workers
        self._version = version
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Time from a request's arrival to the end of its answer.",
            ["protocol", "operation", "model", "backend", "outcome"],
        )
        self._first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Time from a request's arrival to its first token.",
            ["model", "backend"],
        )
        self._tokens = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of a request, read (input) and generated (output).",
            ["model", "backend", "type"],
            _TOKENS,
        )
        self._queue_wait = Histogram(
            "hostler_queue_wait_seconds",
            "Time requests spent in the queue, without the model switch.",
            ["model"],
        )
        self._rejected = Counter("hostler_rejected", "Requests refused before a backend was tried.", ["reason"])
        for reason in _REJECTIONS:
            self._rejected.init(reason)
        self._fallbacks = Counter(
            "hostler_fallbacks",
            "Requests served by a later backend of the chain, by first choice, serving backend and reason.",
            ["from", "to", "reason"],
        )
        self._attempts = Counter("hostler_attempts", "Attempts at a backend, by outcome.", ["backend", "outcome"])
        self._cost = Counter("hostler_cost_usd", "Cost of answers in US dollars.", ["backend"])
        self._breakers = Counter(
            "hostler_breaker_transitions",
            "State changes of circuit breakers; a backend's own has an empty model.",
            ["backend", "model", "state"],
        )
        self._switches = Histogram(
            "hostler_switch_duration_seconds",
            "Time from the request to load a model to ready or failed.",
            ["backend", "from", "to", "outcome"],
        )
        self._first_answers = Counter(
            "hostler_first_answer_prompt_tokens",
            "Prompt tokens of the first answers after switches, cached in a restored conversation or read.",
            ["backend", "model", "source"],
        )
        self._reachable = Gauge("hostler_supervisor_reachable", "1 if the supervisor is reachable.", ["backend"])
        self._draining = Gauge("hostler_host_draining", "1 if the host is drained for maintenance.", ["backend"])
        self._elsewhere = Counter(
            "hostler_cluster_requests_finished",
            "Requests that other gateways of the cluster have finished, by gateway and outcome.",
            ["gateway", "outcome"],
        )
        self._gateways: set[str] = set()
        self._models: dict[tuple[str, str], ModelStatus] = {}
        self._leases: dict[str, tuple[ModelLease, ...]] = {}

    def on_event(self, event: Event) -> None:
        if isinstance(event, RequestFinished):
            self._finished(event)
        elif isinstance(event, FinishedElsewhere):
            self._finished_elsewhere(event.request)
        elif isinstance(event, SwitchChanged):
            self._switched(event.backend, event.switch)
        elif isinstance(event, BreakerChanged):
            self._breakers.inc(event.backend, event.model or "", event.state)
        elif isinstance(event, EngineChanged):
            self._models[event.backend, event.status.model] = event.status
        elif isinstance(event, HostChanged):
            self._reachable.set(event.reachable, event.backend)
            if event.host is not None:
                self._draining.set(event.host.draining, event.backend)
                self._leases[event.backend] = event.host.leases
                for key in [key for key in self._models if key[0] == event.backend]:
                    del self._models[key]
                for status in event.host.models:
                    self._models[event.backend, status.model] = status

    async def render(self) -> bytes:
        chain = self._chain()
        for each in chain.backends:
            for outcome in _ALERTED:
                self._attempts.init(each.backend, outcome)
        info = Gauge("hostler_info", "Always 1; the version is a label.", ["version"])
        info.set(1, self._version)
        counted = (
            *(self._duration, self._first_token, self._tokens, self._queue_wait, self._rejected, self._fallbacks),
            *(self._attempts, self._cost, self._breakers, self._switches, self._first_answers, self._reachable),
            self._draining,
        )
        shared = [] if self._cluster is None else [*_of_cluster(self._cluster()), self._elsewhere]
        if self._workers is not None:
            shared += _of_workers(*self._workers())
        return await exposition([info, *counted, *self._current(), *_of_backends(chain), *shared])

    def _finished_elsewhere(self, event: RequestFinished) -> None:
        gateway = event.gateway or ""
        if gateway in self._gateways or len(self._gateways) < _MAX_GATEWAYS:
            self._gateways.add(gateway)
            self._elsewhere.inc(gateway, event.outcome if event.outcome in _OUTCOMES else "failed")

    def _finished(self, event: RequestFinished) -> None:
        model, backend = event.model or "", event.backend or ""
        if event.outcome == "failed" and event.code in _REJECTIONS:
            self._rejected.inc(event.code)
        if backend == "":
            # Lists, health checks and refusals: counted by duration, without the name of a model.
            model = ""
        self._duration.observe(event.seconds, event.protocol, event.operation, model, backend, event.outcome)
        if backend == "":
            return
        self._queue_wait.observe(event.queue_s, model)
        if event.first_token_s is not None:
            self._first_token.observe(event.first_token_s, model, backend)
        if event.completion_tokens:
            self._tokens.observe(event.prompt_tokens, model, backend, "input")
            self._tokens.observe(event.completion_tokens, model, backend, "output")
        for attempt in event.attempts:
            self._attempts.inc(attempt.backend, attempt.outcome)
        if event.failed_hops and event.outcome == "ok":
            self._fallbacks.inc(event.failed_hops[0].backend, backend, event.failed_hops[0].reason)
        if event.cost:
            self._cost.inc(backend, amount=event.cost)

    def _switched(self, backend: str, switch: SwitchMoved) -> None:
        if switch.first_answer is not None:
            self._first_answers.inc(backend, switch.model, "cached", amount=switch.first_answer.cached)
            read = max(0, switch.first_answer.prompt - switch.first_answer.cached)
            self._first_answers.inc(backend, switch.model, "read", amount=read)
        elif switch.phase in ("ready", "failed"):
            before = switch.from_models[0] if switch.from_models else ""
            self._switches.observe(switch.elapsed_s, backend, before, switch.model, switch.phase)

    def _current(self) -> list[Instrument]:
        states = Gauge("hostler_model_state", "1 for the state a model is in.", ["backend", "model", "state"])
        memory = Gauge("hostler_model_memory_bytes", "Memory used by a model's processes.", ["backend", "model"])
        for (backend, model), status in self._models.items():
            states.set(1, backend, model, status.state)
            memory.set(status.memory_bytes, backend, model)
        leases = Gauge(
            "hostler_model_lease_expires_timestamp_seconds",
            "When the lease of a model ends; absent without a lease.",
            ["backend", "model", "holder"],
        )
        for backend, each in self._leases.items():
            for lease in each:
                leases.set(lease.expires_at, backend, lease.model, lease.holder)
        depth = Gauge("hostler_queue_depth", "Requests waiting for a model.", ["backend"])
        serving = Gauge("hostler_serving", "Requests being answered.", ["backend"])
        for backend, waits, serves in self._queues():
            depth.set(waits, backend)
            serving.set(serves, backend)
        return [states, memory, leases, depth, serving]


def _of_backends(chain: ChainGauges) -> list[Instrument]:
    reachable = Gauge("hostler_backend_reachable", "1 if the backend is reachable.", ["backend"])
    breakers = Gauge(
        "hostler_breaker_state",
        "1 for the state a circuit breaker is in, 0 for all others; a backend's own has an empty model.",
        ["backend", "model", "state"],
    )
    cost = Gauge("hostler_cost_today_usd", "Cost of today's answers in US dollars.", ["backend"])
    limit = Gauge("hostler_cost_limit_usd", "Daily cost limit in US dollars; absent without a limit.")
    for each in chain.backends:
        reachable.set(each.reachable, each.backend)
        for model, state in each.breakers.items():
            for one in _BREAKERS:
                breakers.set(one == state, each.backend, model, one)
        if each.cost is not None:
            cost.set(each.cost, each.backend)
    if chain.limit is not None:
        limit.set(chain.limit)
    return [reachable, breakers, cost, limit]


def _of_workers(count: int, replaced: int) -> list[Instrument]:
    serving = Gauge("hostler_workers", "Worker processes that serve requests.")
    restarts = Counter(
        "hostler_worker_restarts", "Worker processes that were replaced, since they had ended or frozen.", []
    )
    serving.set(count)
    restarts.inc(amount=replaced)
    return [serving, restarts]


def _of_cluster(view: ClusterView) -> list[Instrument]:
    store = Gauge("hostler_cluster_store_connected", "1 if the cluster's store is in use.")
    gateways = Gauge("hostler_cluster_gateways", "Gateways of the cluster, as far as this one knows.")
    hosts = Gauge("hostler_cluster_hosts", "Hosts that have joined the cluster by themselves.")
    elsewhere = Gauge("hostler_cluster_hosts_elsewhere", "Hosts that only other gateways of the cluster use.")
    requests = Gauge(
        "hostler_cluster_requests_in_flight", "Requests in flight at the cluster's gateways, by gateway.", ["gateway"]
    )
    calls = Counter("hostler_cluster_store_calls", "Commands for the cluster's store, by outcome.", ["outcome"])
    store.set(view.connected)
    gateways.set(len(view.gateways))
    hosts.set(len(view.hosts))
    elsewhere.set(len(view.elsewhere))
    for gateway in view.gateways:
        requests.set(view.requests.get(gateway.name, 0), gateway.name)
    for outcome in ("ok", "failed", "away"):
        calls.inc(outcome, amount=view.calls.get(outcome, 0))
    versions = Gauge(
        "hostler_cluster_configuration_version", "The version of what members share that this gateway uses.", ["kind"]
    )
    refused = Gauge(
        "hostler_cluster_configuration_refused",
        "Members that cannot use the newest version of what is shared.",
        ["kind"],
    )
    states = [state for gateway in view.gateways for state in gateway.configuration]
    states += [state for host in view.hosts for state in host.configuration]
    for kind in get_args(ConfigurationKind):
        refused.set(sum(1 for state in states if state.kind == kind and state.reason), kind)
    for state in (state for member in view.gateways if member.own for state in member.configuration):
        versions.set(state.version, state.kind)
    return [store, gateways, hosts, elsewhere, requests, calls, versions, refused]
