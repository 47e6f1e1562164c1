"""Counters, kept by listening to the bus, and told in Prometheus' text format. Nobody else knows of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hostler.gateway.events import EngineChanged, Event, HostChanged, RequestFinished, SwitchChanged
from hostler.supervisor.contract import ModelStatus, SwitchMoved

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)

#: Refusals before anything was tried: what they are called in `hostler_rejected_total`.
_REJECTIONS = frozenset({"queue_full", "wait_limit_reached", "model_not_available", "shutting_down"})


class Metrics:
    """Listens to events and renders `/metrics`. `waiting` tells how many requests wait now, per backend.

    Models appear under the names of the catalogue only, so that clients cannot make up series.
    """

    def __init__(self, waiting: Callable[[], Iterable[tuple[str, int, int]]]) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._known: dict[tuple[Histogram, tuple[str, ...]], Histogram] = {}
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
            "hostler_fallbacks", "Requests that a later hop answered.", ["model", "backend"], registry=registry
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
        registry.register(_Live(self._models, waiting))

    def hear(self, event: Event) -> None:
        """A listener for the bus."""
        if isinstance(event, RequestFinished):
            self._finished(event)
        elif isinstance(event, SwitchChanged):
            self._switched(event.backend, event.switch)
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
        series = self._series
        series(self._duration, event.protocol, event.operation, model, backend, event.outcome).observe(event.seconds)
        if backend == "":
            return
        series(self._queue_wait, model).observe(event.queue_s)
        if event.first_word_s is not None:
            series(self._first_word, model, backend).observe(event.first_word_s)
        if event.completion_tokens:
            series(self._tokens, model, backend, "input").observe(event.prompt_tokens)
            series(self._tokens, model, backend, "output").observe(event.completion_tokens)
        if event.hop and event.outcome == "ok":
            self._fallbacks.labels(model, backend).inc()

    def _series(self, metric: Histogram, *labels: str) -> Histogram:
        """The metric's series for these labels. The library would check and lock for each event."""
        known = self._known.get((metric, labels))
        if known is None:
            known = self._known[metric, labels] = metric.labels(*labels)
        return known

    def _switched(self, backend: str, switch: SwitchMoved) -> None:
        if switch.phase in ("ready", "failed"):
            before = switch.from_models[0] if switch.from_models else ""
            self._switches.labels(backend, before, switch.model, switch.phase).observe(switch.elapsed_s)


class _Live(Collector):
    """What is true at the moment of asking, rather than counted."""

    def __init__(
        self,
        models: dict[tuple[str, str], ModelStatus],
        waiting: Callable[[], Iterable[tuple[str, int, int]]],
    ) -> None:
        self._models = models
        self._waiting = waiting

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
        return [states, memory, depth, serving]
