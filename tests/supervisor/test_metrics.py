"""Counters that hear a host's events, as Prometheus reads them."""

from __future__ import annotations

from msgspec.structs import replace

from hostler.supervisor.contract import Failure, HostStatus, ModelChanged, ModelStatus, ProfileInfo, SwitchMoved
from hostler.supervisor.metrics import HostMetrics

STARTING = ModelStatus(model="a", state="starting", since=1.0, generation=1, pid=9)
FAILURE = Failure(kind="out_of_memory", message="no memory")


def values(metrics: HostMetrics) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in metrics.render().decode().splitlines() if not line.startswith("#")]
    return {name.removeprefix("hostler_supervisor_"): float(value) for name, value in lines}


def test_a_start_counts_once_however_often_it_is_told() -> None:
    metrics = HostMetrics(HostStatus)
    for status in (STARTING, replace(STARTING, percent=50.0), replace(STARTING, state="ready")):
        metrics.hear(ModelChanged(status=status))
    assert values(metrics)['starts_total{model="a"}'] == 1
    metrics.hear(ModelChanged(status=replace(STARTING, generation=2)))
    assert values(metrics)['starts_total{model="a"}'] == 2


def test_failures_count_by_kind_and_an_old_one_does_not_count_again() -> None:
    metrics = HostMetrics(HostStatus)
    metrics.hear(ModelChanged(status=replace(STARTING, state="backoff", pid=None, failure=FAILURE)))
    metrics.hear(ModelChanged(status=replace(STARTING, generation=2, failure=FAILURE)))
    again = replace(FAILURE, retry_after_s=4.0)
    metrics.hear(ModelChanged(status=replace(STARTING, generation=2, state="failed", failure=again)))
    assert values(metrics)['failures_total{kind="out_of_memory",model="a"}'] == 2


def test_a_switch_is_timed_with_what_it_spent_where() -> None:
    metrics = HostMetrics(HostStatus)
    moved = SwitchMoved(id="1", model="a", phase="loading", elapsed_s=0.5)
    metrics.hear(moved)
    metrics.hear(replace(moved, phase="ready", elapsed_s=2.0, phase_seconds={"stopping": 0.25, "loading": 1.5}))
    told = values(metrics)
    assert told['switch_duration_seconds_sum{model="a",outcome="ready"}'] == 2.0
    assert told['switch_duration_seconds_count{model="a",outcome="ready"}'] == 1
    assert told['switch_phase_seconds_total{phase="loading"}'] == 1.5


def test_states_memory_and_load_times_are_those_of_the_moment() -> None:
    host = HostStatus(
        models=(replace(STARTING, memory_bytes=10, gpu_bytes=20),),
        profiles=(ProfileInfo(name="a", memory_bytes=30, load_s=1.5),), budget_bytes=100,
    )  # fmt: skip
    told = values(HostMetrics(lambda: host))
    assert told['model_state{model="a",state="starting"}'] == 1
    assert told['model_state{model="a",state="ready"}'] == 0
    assert told['model_memory_bytes{model="a",where="ram"}'] == 10
    assert told['model_memory_bytes{model="a",where="gpu"}'] == 20
    assert (told['model_need_bytes{model="a"}'], told['model_load_seconds{model="a"}']) == (30, 1.5)
    assert told["memory_budget_bytes"] == 100
