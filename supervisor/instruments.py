"""Counters, gauges and histograms as plain numbers, and their text for Prometheus.

prometheus_client's own take 1.2 us (counter) to 1.9 us (histogram) for each value, these 0.2 us, and a request has up to
eight; and the library is loaded only when `/metrics` is first asked for. Belongs to one thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import anyio.to_thread

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

#: Bounds for durations, in seconds.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Gauge:
    """A value that goes up and down, by labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = labels
        self.values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, *labels: str) -> None:
        self.values[labels] = value


class Counter:
    """A value that only grows, by labels. `name` goes without the suffix `_total`."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = labels
        self.values: dict[tuple[str, ...], float] = {}

    def init(self, *labels: str) -> None:
        """Expose 0 until the first increment: Prometheus only sees growth where there was a number before."""
        self.values.setdefault(labels, 0)

    def inc(self, *labels: str, amount: float = 1) -> None:
        self.values[labels] = self.values.get(labels, 0) + amount


class Histogram:
    """Counts of values up to each bound, and their sum, by labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float] = SECONDS) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = labels
        self.bounds = bounds
        self.series: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def observe(self, value: float, *labels: str) -> None:
        series = self.series.get(labels)
        if series is None:
            series = self.series[labels] = ([0] * (len(self.bounds) + 1), [0.0])
        series[0][bisect_left(self.bounds, value)] += 1
        series[1][0] += value


Instrument = Gauge | Counter | Histogram


async def exposition(instruments: Iterable[Instrument], *, process: bool = True) -> bytes:
    """Prometheus' text format, in the order given; with `process` preceded by this process' CPU, memory and files."""
    # Loading the library takes as long as hundreds of requests: only when it is needed, and in another thread.
    await anyio.to_thread.run_sync(_import_prometheus)
    return _exposition(instruments, process=process)


def _import_prometheus() -> None:
    import prometheus_client  # noqa: F401 - to have it loaded


def _exposition(instruments: Iterable[Instrument], *, process: bool) -> bytes:
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.registry import Collector

    class Instruments(Collector):
        def collect(self) -> Iterable[Metric]:
            return map(_family, instruments)

        def describe(self) -> Iterable[Metric]:
            return []  # or `register` would call `collect` to look for duplicate names

    registry = CollectorRegistry()
    if process:
        ProcessCollector(registry=registry)
    registry.register(Instruments())
    return generate_latest(registry)


def _family(instrument: Instrument) -> Metric:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if isinstance(instrument, Histogram):
        histogram = HistogramMetricFamily(instrument.name, instrument.documentation, labels=instrument.labels)
        bounds = (*map(str, map(float, instrument.bounds)), "+Inf")
        for labels, (counts, (total,)) in instrument.series.items():
            buckets, so_far = [], 0
            for bound, count in zip(bounds, counts, strict=True):
                so_far += count
                buckets.append((bound, so_far))
            histogram.add_metric(labels, buckets, total)
        return histogram
    kind = CounterMetricFamily if isinstance(instrument, Counter) else GaugeMetricFamily
    family = kind(instrument.name, instrument.documentation, labels=instrument.labels)
    for labels, value in instrument.values.items():
        family.add_metric(labels, value)
    return family
