"""Many hosts with real schedulers in simulated time, against the order of the chain alone and the best there is."""

from __future__ import annotations

import statistics

from bench.placement import Size, against_the_optimum, simulate


def test_all_requests_are_answered_sooner_and_more_evenly_than_in_the_chains_order() -> None:
    size = Size(hosts=6, models=30, clients=120, requests=2, spread=3, failures=2)
    placed, chained = simulate(size), simulate(size, ranked=False)
    assert placed.answers == chained.answers == 240
    assert placed.makespan_s < chained.makespan_s
    assert placed.mean_wait_s < chained.mean_wait_s / 2
    assert placed.jain > chained.jain
    assert placed.moved > 0


def test_small_instances_end_nearly_as_soon_as_possible() -> None:
    ratios = [placed / best for placed, best in map(against_the_optimum, range(20))]
    assert min(ratios) >= 0.999
    assert statistics.fmean(ratios) < 1.3
    assert max(ratios) < 1.7
