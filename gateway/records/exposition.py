"""Figures in Prometheus' text format, those of this process with them. Loaded by the first who asks for the text."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hostler.gateway.records.tallies import Figure, Histogram, Tally


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
