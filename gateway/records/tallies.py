"""Figures by labels: plain counting, without locks. In which form they are told is not known here."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


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
