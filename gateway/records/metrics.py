"""Counters, kept by listening to the bus, and told in Prometheus' text format. Nobody else knows of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hostler.gateway.events import BreakerChanged, EngineChanged, Event, HostChanged, RequestFinished, SwitchChanged
from hostler.supervisor.contract import ModelStatus, SwitchMoved

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)

_BREAKERS = ("closed", "open", "half_open")

#: Refusals before anything was tried: what they are called in `hostler_rejected_total`.
_REJECTIONS = frozenset({"queue_full", "wait_limit_reached", "model_not_available", "shutting_down"})


class Histogram(Collector):
    """Counts of values up to each bound, by labels. The library's own takes a lock and a walk for each value."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._bounds = tuple(buckets)
        self._series: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        registry.register(self)

    def observe(self, value: float, *labels: str) -> None:
        """Another value."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = ([0] * (len(self._bounds) + 1), [0.0])
        series[0][bisect_left(self._bounds, value)] += 1
        series[1][0] += value

    def describe(self) -> Iterable[Metric]:
        return [HistogramMetricFamily(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, (counts, (total,)) in self._series.items():
            buckets, so_far = [], 0
            for bound, count in zip((*map(str, map(float, self._bounds)), "+Inf"), counts, strict=True):
                so_far += count
                buckets.append((bound, so_far))
            family.add_metric(labels, buckets, total)
        return [family]


class BackendNow(msgspec.Struct, frozen=True, kw_only=True):
    """A backend at the moment of asking. `breakers` are the states by model; the backend's own is under `""`."""

    backend: str
    reachable: bool
    breakers: Mapping[str, str]
    cost: float | None = None


class ChainNow(msgspec.Struct, frozen=True, kw_only=True):
    """The chain at the moment of asking, and what clouds may cost a day."""

    backends: Sequence[BackendNow] = ()
    limit: float | None = None


class Tally(Collector):
    """How often something happened, by labels: the library's `Counter` without its lock."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], *, registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._counts: dict[tuple[str, ...], int] = {}
        registry.register(self)

    def add(self, *labels: str) -> None:
        """Once more."""
        self._counts[labels] = self._counts.get(labels, 0) + 1

    def describe(self) -> Iterable[Metric]:
        return [CounterMetricFamily(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        return [family]


class Metrics:
    """Listens to events and renders `/metrics`. `waiting` tells how many requests wait now, per backend; `chain` how
    each backend stands.

    Models appear under the names of the catalogue only, so that clients cannot make up series.
    """

    def __init__(
        self,
        waiting: Callable[[], Iterable[tuple[str, int, int]]],
        chain: Callable[[], ChainNow] = ChainNow,
        *,
        version: str = "",
    ) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        ProcessCollector(registry=registry)
        Gauge("hostler_info", "1; the version is a label.", ["version"], registry=registry).labels(version).set(1)
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            ["protocol", "operation", "model", "backend", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_word = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From a request's arrival to the first piece of its answer.",
            ["model", "backend"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of a request, read (input) and written (output).",
            ["model", "backend", "type"],
            buckets=_TOKENS,
            registry=registry,
        )
        self._queue_wait = Histogram(
            "hostler_queue_wait_seconds",
            "How long requests waited for their turn, without the switch itself.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._rejected = Counter(
            "hostler_rejected", "Requests refused before a backend was asked.", ["reason"], registry=registry
        )
        self._fallbacks = Counter(
            "hostler_fallbacks",
            "Requests that a later hop answered: which one should have, which one did, and why.",
            ["from", "to", "reason"],
            registry=registry,
        )
        self._attempts = Tally(
            "hostler_attempts", "Tries at a backend, by what became of them.", ["backend", "outcome"], registry=registry
        )
        self._cost = Counter(
            "hostler_cost_usd", "What answers have cost, in US dollars.", ["backend"], registry=registry
        )
        self._breakers = Counter(
            "hostler_breaker_transitions",
            "How often a breaker went into a state; the backend's own has no model.",
            ["backend", "model", "state"],
            registry=registry,
        )
        self._switches = Histogram(
            "hostler_switch_duration_seconds",
            "From the order to load a model until it was ready or had failed.",
            ["backend", "from", "to", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._reachable = Gauge(
            "hostler_supervisor_reachable", "Whether a supervisor answers.", ["backend"], registry=registry
        )
        self._models: dict[tuple[str, str], ModelStatus] = {}
        registry.register(_Live(self._models, waiting, chain))

    def hear(self, event: Event) -> None:
        """A listener for the bus."""
        if isinstance(event, RequestFinished):
            self._finished(event)
        elif isinstance(event, SwitchChanged):
            self._switched(event.backend, event.switch)
        elif isinstance(event, BreakerChanged):
            self._breakers.labels(event.backend, event.model or "", event.state).inc()
        elif isinstance(event, EngineChanged):
            self._models[event.backend, event.status.model] = event.status
        elif isinstance(event, HostChanged):
            self._reachable.labels(event.backend).set(event.reachable)
            if event.host is not None:
                for key in [key for key in self._models if key[0] == event.backend]:
                    del self._models[key]
                for status in event.host.models:
                    self._models[event.backend, status.model] = status

    def render(self) -> bytes:
        """The text of `/metrics`."""
        return generate_latest(self._registry)

    def _finished(self, event: RequestFinished) -> None:
        model, backend = event.model or "", event.backend or ""
        if event.outcome == "failed" and event.code in _REJECTIONS:
            self._rejected.labels(event.code).inc()
        if backend == "":
            # Probes, and what was refused at the door: counted by duration, under no model's name.
            model = ""
        self._duration.observe(event.seconds, event.protocol, event.operation, model, backend, event.outcome)
        if backend == "":
            return
        self._queue_wait.observe(event.queue_s, model)
        if event.first_word_s is not None:
            self._first_word.observe(event.first_word_s, model, backend)
        if event.completion_tokens:
            self._tokens.observe(event.prompt_tokens, model, backend, "input")
            self._tokens.observe(event.completion_tokens, model, backend, "output")
        for attempt in event.attempts:
            self._attempts.add(attempt.backend, attempt.outcome)
        if event.passed and event.outcome == "ok":
            self._fallbacks.labels(event.passed[0].backend, backend, event.passed[0].why).inc()
        if event.cost:
            self._cost.labels(backend).inc(event.cost)

    def _switched(self, backend: str, switch: SwitchMoved) -> None:
        if switch.phase in ("ready", "failed"):
            before = switch.from_models[0] if switch.from_models else ""
            self._switches.observe(switch.elapsed_s, backend, before, switch.model, switch.phase)


class _Live(Collector):
    """What is true at the moment of asking, rather than counted."""

    def __init__(
        self,
        models: dict[tuple[str, str], ModelStatus],
        waiting: Callable[[], Iterable[tuple[str, int, int]]],
        chain: Callable[[], ChainNow],
    ) -> None:
        self._models = models
        self._waiting = waiting
        self._chain = chain

    def describe(self) -> Iterable[Metric]:
        """Nothing: what is so now is asked for when it is told, not when this is registered."""
        return []

    def collect(self) -> Iterable[Metric]:
        states = GaugeMetricFamily(
            "hostler_model_state", "1 for the state a model is in.", labels=["backend", "model", "state"]
        )
        memory = GaugeMetricFamily(
            "hostler_model_memory_bytes", "What a model's processes take.", labels=["backend", "model"]
        )
        for (backend, model), status in self._models.items():
            states.add_metric([backend, model, status.state], 1)
            memory.add_metric([backend, model], status.memory_bytes)
        depth = GaugeMetricFamily("hostler_queue_depth", "Requests that wait for a model.", labels=["backend"])
        serving = GaugeMetricFamily("hostler_serving", "Requests being answered.", labels=["backend"])
        for backend, waits, serves in self._waiting():
            depth.add_metric([backend], waits)
            serving.add_metric([backend], serves)
        return [states, memory, depth, serving, *self._backends(self._chain())]

    def _backends(self, chain: ChainNow) -> Iterable[Metric]:
        reachable = GaugeMetricFamily("hostler_backend_reachable", "Whether a backend answers.", labels=["backend"])
        breakers = GaugeMetricFamily(
            "hostler_breaker_state",
            "1 for the state a breaker is in, 0 for all others; the backend's own has no model.",
            labels=["backend", "model", "state"],
        )
        cost = GaugeMetricFamily(
            "hostler_cost_today_usd", "What today's answers have cost, in US dollars.", labels=["backend"]
        )
        limit = GaugeMetricFamily("hostler_cost_limit_usd", "What a day may cost, in US dollars; absent: no limit.")
        for each in chain.backends:
            reachable.add_metric([each.backend], each.reachable)
            for model, state in each.breakers.items():
                for one in _BREAKERS:
                    breakers.add_metric([each.backend, model, one], float(one == state))
            if each.cost is not None:
                cost.add_metric([each.backend], each.cost)
        if chain.limit is not None:
            limit.add_metric([], chain.limit)
        return [reachable, breakers, cost, limit]
