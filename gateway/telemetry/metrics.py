"""Counters, kept by listening to the bus, and what is so at the moment of asking. Nobody else knows of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

import anyio.to_thread
import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hostler.gateway.events import BreakerChanged, EngineChanged, Event, HostChanged, RequestFinished, SwitchChanged
from hostler.supervisor.contract import ModelStatus, SwitchMoved


class Gauge:
    """Values that go up and down, by labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = labels
        self.values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, *labels: str) -> None:
        """It is this now."""
        self.values[labels] = value


class Tally:
    """How often something happened, or how much of it there was, by labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = labels
        self.values: dict[tuple[str, ...], float] = {}

    def begin(self, *labels: str) -> None:
        """Not once so far: Prometheus sees growth only where there was a number before."""
        self.values.setdefault(labels, 0)

    def add(self, *labels: str, amount: float = 1) -> None:
        """Once more, or so much more."""
        self.values[labels] = self.values.get(labels, 0) + amount


class Histogram:
    """Counts of values up to each bound and their sum, by labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = labels
        self.bounds = bounds
        self.series: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Another value."""
        series = self.series.get(labels)
        if series is None:
            series = self.series[labels] = ([0] * (len(self.bounds) + 1), [0.0])
        series[0][bisect_left(self.bounds, value)] += 1
        series[1][0] += value


Figure = Gauge | Tally | Histogram


def exposition(figures: Iterable[Figure]) -> bytes:
    """The text, in the order of the figures."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Told(figures))
    return generate_latest(registry)


class _Told(Collector):
    def __init__(self, figures: Iterable[Figure]) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are ours, and no other collector has them."""
        return []

    def collect(self) -> Iterable[Metric]:
        return [_family(figure) for figure in self._figures]


def _family(figure: Figure) -> Metric:
    if isinstance(figure, Histogram):
        histogram = HistogramMetricFamily(figure.name, figure.documentation, labels=figure.labels)
        bounds = (*map(str, map(float, figure.bounds)), "+Inf")
        for labels, (counts, (total,)) in figure.series.items():
            buckets, so_far = [], 0
            for bound, count in zip(bounds, counts, strict=True):
                so_far += count
                buckets.append((bound, so_far))
            histogram.add_metric(labels, buckets, total)
        return histogram
    kind = CounterMetricFamily if isinstance(figure, Tally) else GaugeMetricFamily
    family = kind(figure.name, figure.documentation, labels=figure.labels)
    for labels, value in figure.values.items():
        family.add_metric(labels, value)
    return family


_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)

_BREAKERS = ("closed", "open", "half_open")

#: Refusals before anything was tried: what they are called in `hostler_rejected_total`.
_REJECTIONS = ("queue_full", "wait_limit_reached", "model_not_available", "shutting_down")

#: What became of attempts that somebody is to be told of the first time already.
_GRAVE = ("auth_failed", "payment_required")


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
        self._waiting = waiting
        self._chain = chain
        self._version = version
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            ["protocol", "operation", "model", "backend", "outcome"],
            _SECONDS,
        )
        self._first_word = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From a request's arrival to the first piece of its answer.",
            ["model", "backend"],
            _SECONDS,
        )
        self._tokens = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of a request, read (input) and written (output).",
            ["model", "backend", "type"],
            _TOKENS,
        )
        self._queue_wait = Histogram(
            "hostler_queue_wait_seconds",
            "How long requests waited for their turn, without the switch itself.",
            ["model"],
            _SECONDS,
        )
        self._rejected = Tally("hostler_rejected", "Requests refused before a backend was asked.", ["reason"])
        for reason in _REJECTIONS:
            self._rejected.begin(reason)
        self._fallbacks = Tally(
            "hostler_fallbacks",
            "Requests that a later hop answered: which one should have, which one did, and why.",
            ["from", "to", "reason"],
        )
        self._attempts = Tally(
            "hostler_attempts", "Tries at a backend, by what became of them.", ["backend", "outcome"]
        )
        self._cost = Tally("hostler_cost_usd", "What answers have cost, in US dollars.", ["backend"])
        self._breakers = Tally(
            "hostler_breaker_transitions",
            "How often a breaker went into a state; the backend's own has no model.",
            ["backend", "model", "state"],
        )
        self._switches = Histogram(
            "hostler_switch_duration_seconds",
            "From the order to load a model until it was ready or had failed.",
            ["backend", "from", "to", "outcome"],
            _SECONDS,
        )
        self._reachable = Gauge("hostler_supervisor_reachable", "Whether a supervisor answers.", ["backend"])
        self._models: dict[tuple[str, str], ModelStatus] = {}

    def hear(self, event: Event) -> None:
        """A listener for the bus."""
        if isinstance(event, RequestFinished):
            self._finished(event)
        elif isinstance(event, SwitchChanged):
            self._switched(event.backend, event.switch)
        elif isinstance(event, BreakerChanged):
            self._breakers.add(event.backend, event.model or "", event.state)
        elif isinstance(event, EngineChanged):
            self._models[event.backend, event.status.model] = event.status
        elif isinstance(event, HostChanged):
            self._reachable.set(event.reachable, event.backend)
            if event.host is not None:
                for key in [key for key in self._models if key[0] == event.backend]:
                    del self._models[key]
                for status in event.host.models:
                    self._models[event.backend, status.model] = status

    async def render(self) -> bytes:
        """The text of `/metrics`."""
        # What writes it takes memory, and as long to load as hundreds of requests: not before somebody wants it, and
        # beside those who are served.
        exposition = await anyio.to_thread.run_sync(_load_exposition)
        chain = self._chain()
        for each in chain.backends:
            for outcome in _GRAVE:
                self._attempts.begin(each.backend, outcome)
        info = Gauge("hostler_info", "1; the version is a label.", ["version"])
        info.set(1, self._version)
        counted = (
            *(self._duration, self._first_word, self._tokens, self._queue_wait, self._rejected, self._fallbacks),
            *(self._attempts, self._cost, self._breakers, self._switches, self._reachable),
        )
        return exposition([info, *counted, *self._now(), *_of_backends(chain)])

    def _finished(self, event: RequestFinished) -> None:
        model, backend = event.model or "", event.backend or ""
        if event.outcome == "failed" and event.code in _REJECTIONS:
            self._rejected.add(event.code)
        if backend == "":
            # Probes, and what was refused at the door: counted by duration, under no model's name.
            model = ""
        self._duration.observe(event.seconds, event.protocol, event.operation, model, backend, event.outcome)
        if backend == "":
            return
        self._queue_wait.observe(event.queue_s, model)
        if event.first_token_s is not None:
            self._first_word.observe(event.first_token_s, model, backend)
        if event.completion_tokens:
            self._tokens.observe(event.prompt_tokens, model, backend, "input")
            self._tokens.observe(event.completion_tokens, model, backend, "output")
        for attempt in event.attempts:
            self._attempts.add(attempt.backend, attempt.outcome)
        if event.failed_hops and event.outcome == "ok":
            self._fallbacks.add(event.failed_hops[0].backend, backend, event.failed_hops[0].reason)
        if event.cost:
            self._cost.add(backend, amount=event.cost)

    def _switched(self, backend: str, switch: SwitchMoved) -> None:
        if switch.phase in ("ready", "failed"):
            before = switch.from_models[0] if switch.from_models else ""
            self._switches.observe(switch.elapsed_s, backend, before, switch.model, switch.phase)

    def _now(self) -> list[Figure]:
        states = Gauge("hostler_model_state", "1 for the state a model is in.", ["backend", "model", "state"])
        memory = Gauge("hostler_model_memory_bytes", "What a model's processes take.", ["backend", "model"])
        for (backend, model), status in self._models.items():
            states.set(1, backend, model, status.state)
            memory.set(status.memory_bytes, backend, model)
        depth = Gauge("hostler_queue_depth", "Requests that wait for a model.", ["backend"])
        serving = Gauge("hostler_serving", "Requests being answered.", ["backend"])
        for backend, waits, serves in self._waiting():
            depth.set(waits, backend)
            serving.set(serves, backend)
        return [states, memory, depth, serving]


def _of_backends(chain: ChainNow) -> list[Figure]:
    reachable = Gauge("hostler_backend_reachable", "Whether a backend answers.", ["backend"])
    breakers = Gauge(
        "hostler_breaker_state",
        "1 for the state a breaker is in, 0 for all others; the backend's own has no model.",
        ["backend", "model", "state"],
    )
    cost = Gauge("hostler_cost_today_usd", "What today's answers have cost, in US dollars.", ["backend"])
    limit = Gauge("hostler_cost_limit_usd", "What a day may cost, in US dollars; absent: no limit.")
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


def _load_exposition() -> Callable[[Iterable[Figure]], bytes]:
    from hostler.gateway.telemetry.metrics import exposition

    return exposition
