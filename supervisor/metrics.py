"""What a host did, counted by hearing its events, and what it is, asked when told: Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hostler.supervisor.contract import Failure, HostStatus, ModelChanged, State, SupervisorEvent, SwitchMoved

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class HostMetrics:
    """`hear` every event of a host, then `render`. `status` tells how it is now.

    A gateway of the same process tells what `counted` does beside its own, and the process' own figures itself.
    """

    def __init__(self, status: Callable[[], HostStatus]) -> None:
        self._registry = registry = CollectorRegistry()
        self._starts = Counter(
            "hostler_supervisor_starts", "Processes that were started.", ["model"], registry=registry
        )
        self._failures = Counter(
            "hostler_supervisor_failures", "Engines that could not be started, or died.", ["model", "kind"],
            registry=registry,
        )  # fmt: skip
        self._switches = Histogram(
            "hostler_supervisor_switch_duration_seconds", "From the order to ready or failed.", ["model", "outcome"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._phases = Counter(
            "hostler_supervisor_switch_phase_seconds", "What switches spent where.", ["phase"], registry=registry
        )
        registry.register(_Now(status))
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        self._generations: dict[str, int] = {}
        self._failed: dict[str, Failure] = {}

    def hear(self, event: SupervisorEvent) -> None:
        """Something happened."""
        if isinstance(event, SwitchMoved):
            if event.phase in ("ready", "failed"):
                self._switches.labels(event.model, event.phase).observe(event.elapsed_s)
                for phase, seconds in event.phase_seconds.items():
                    self._phases.labels(phase).inc(seconds)
        elif isinstance(event, ModelChanged):
            status = event.status
            if status.pid is not None and self._generations.get(status.model) != status.generation:
                self._generations[status.model] = status.generation
                self._starts.labels(status.model).inc()
            # A failure is told again with every change, until the model is ready: each one is the same value then.
            if status.failure is not None and self._failed.get(status.model) is not status.failure:
                self._failed[status.model] = status.failure
                self._failures.labels(status.model, status.failure.kind).inc()

    def render(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return self.counted() + generate_latest(self._process)

    def counted(self) -> bytes:
        """The same without what is known of the process."""
        return generate_latest(self._registry)


class _Now(Collector):
    """What is so at the moment of asking."""

    def __init__(self, status: Callable[[], HostStatus]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        host = self._status()
        state = GaugeMetricFamily(
            "hostler_supervisor_model_state", "1 for the state a model is in, 0 for all others.",
            labels=["model", "state"],
        )  # fmt: skip
        memory = GaugeMetricFamily(
            "hostler_supervisor_model_memory_bytes", "What a model's processes take.", labels=["model", "where"]
        )
        need = GaugeMetricFamily(
            "hostler_supervisor_model_need_bytes", "What a model is expected to take.", labels=["model"]
        )
        load = GaugeMetricFamily(
            "hostler_supervisor_model_load_seconds", "What a model's next load is expected to take.", labels=["model"]
        )
        pinned = GaugeMetricFamily(
            "hostler_supervisor_model_pinned", "1 for a model that stays loaded.", labels=["model"]
        )
        budget = GaugeMetricFamily("hostler_supervisor_memory_budget_bytes", "What all models together may take.")
        for status in host.models:
            for each in get_args(State):
                state.add_metric([status.model, each], float(status.state == each))
            memory.add_metric([status.model, "ram"], status.memory_bytes)
            memory.add_metric([status.model, "gpu"], status.gpu_bytes)
        for profile in host.profiles:
            need.add_metric([profile.name], profile.memory_bytes)
            pinned.add_metric([profile.name], float(profile.pinned))
            if profile.load_s is not None:
                load.add_metric([profile.name], profile.load_s)
        if host.budget_bytes is not None:
            budget.add_metric([], host.budget_bytes)
        return (state, memory, need, load, pinned, budget)
