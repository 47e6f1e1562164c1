"""Random histories on hosts with groups, sets and GPUs: what must not run together never does, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter

from fakes.scheduler_host import profile
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.supervisor.contract import DeviceStatus
from hostler.supervisor.scheduling.types import Decision, Grant

from .test_scheduler_simulation import JOBS, MODELS, PARALLEL, PATIENCE, Job, Simulation

SETS = st.lists(st.frozensets(st.sampled_from(MODELS), min_size=1), min_size=1, max_size=4)
LIMITED = {"patience_s": 4.0, "max_waiting": 20, "max_wait_s": 1000.0}
IDLE_S = st.sampled_from([None, 2.0])
COSTS = st.lists(st.none() | st.sampled_from([0.0, 1.0, 30.0]), min_size=3, max_size=3)


def assert_all_served(host: Simulation, jobs: list[Job]) -> None:
    host.run(jobs)
    assert set(host.ended) == set(range(1, len(jobs) + 1))
    assert not host.refused and not host.waiting and not host.using


@given(JOBS, PARALLEL, PATIENCE, SETS, COSTS, IDLE_S)
@settings(deadline=None, max_examples=400)
def test_loaded_models_are_always_part_of_one_set(
    jobs: list[Job],
    parallel: int,
    patience_s: float,
    sets: list[frozenset[str]],
    costs: list[float | None],
    ttl_s: float | None,
) -> None:
    profiles = [profile(name, parallel, evict_cost=cost, ttl_s=ttl_s) for name, cost in zip(MODELS, costs, strict=True)]

    def may_run(up: set[str]) -> bool:
        return len(up) == 1 or any(up <= names for names in sets)

    limits = {"sets": tuple(tuple(sorted(names)) for names in sets)}
    host = Simulation(*profiles, limits=limits, may_run=may_run, **LIMITED | {"patience_s": patience_s})
    assert_all_served(host, jobs)


@given(JOBS, PARALLEL, PATIENCE, SETS, IDLE_S)
@settings(deadline=None, max_examples=400)
def test_of_each_group_one_model_runs_at_a_time(
    jobs: list[Job], parallel: int, patience_s: float, groups: list[frozenset[str]], ttl_s: float | None
) -> None:
    def may_run(up: set[str]) -> bool:
        return all(len(up & group) <= 1 for group in groups)

    limits = {"groups": tuple(tuple(sorted(names)) for names in groups)}
    profiles = [profile(name, parallel, ttl_s=ttl_s) for name in MODELS]
    host = Simulation(*profiles, limits=limits, may_run=may_run, **LIMITED | {"patience_s": patience_s})
    assert_all_served(host, jobs)


@given(
    JOBS, PARALLEL, PATIENCE,
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 6)), min_size=3, max_size=3), IDLE_S,
)  # fmt: skip
@settings(deadline=None, max_examples=400)
def test_models_never_take_more_of_a_gpu_than_it_has(
    jobs: list[Job], parallel: int, patience_s: float, needs: list[tuple[int, int]], ttl_s: float | None
) -> None:
    sizes = {name: {"gpu0": first, "gpu1": second} for name, (first, second) in zip(MODELS, needs, strict=True)}
    profiles = [profile(name, parallel, device_bytes=sizes[name], ttl_s=ttl_s) for name in MODELS]
    capacities = {"gpu0": 10, "gpu1": 6}
    limits = {"devices": tuple(DeviceStatus(name=name, capacity_bytes=size) for name, size in capacities.items())}

    def may_run(up: set[str]) -> bool:
        return all(sum(sizes[name][device] for name in up) <= size for device, size in capacities.items())

    host = Simulation(*profiles, limits=limits, may_run=may_run, **LIMITED | {"patience_s": patience_s})
    assert_all_served(host, jobs)


@given(JOBS, PARALLEL, st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None, max_examples=300)
def test_a_model_has_no_more_requests_than_its_profile_allows(
    jobs: list[Job], parallel: int, max_concurrent: int, max_waiting: int
) -> None:
    profiles = [profile(name, parallel, max_concurrent=max_concurrent, max_waiting=max_waiting) for name in MODELS]

    class Watched(Simulation):
        def note(self, decisions: list[Decision]) -> list[Decision]:
            super().note(decisions)
            for decision in decisions:
                if isinstance(decision, Grant):
                    assert Counter(self.using.values())[decision.model] <= max_concurrent
            assert all(model.waiting <= max_waiting for model in self.scheduler.view().models)
            return decisions

    host = Watched(*profiles, **LIMITED)
    host.run(jobs)
    assert set(host.ended) == set(range(1, len(jobs) + 1))
    assert {refusal.reason for refusal in host.refused.values()} <= {"model_queue_full"}


@given(JOBS, PARALLEL, PATIENCE, st.sampled_from([0.5, 3.0]), IDLE_S, st.frozensets(st.integers(1, 6), max_size=3))
@settings(deadline=None, max_examples=400)
def test_an_idle_host_returns_to_its_default_model(
    jobs: list[Job], parallel: int, patience_s: float, after_s: float, ttl_s: float | None, failing: frozenset[int]
) -> None:
    profiles = [profile("a", parallel, default=True), *(profile(name, parallel, ttl_s=ttl_s) for name in "bc")]
    rules = LIMITED | {"patience_s": patience_s}
    limits = {"return_to_default_s": after_s, "exclusive": True}
    host = Simulation(*profiles, limits=limits, failing=failing, **rules)
    host.run(jobs)
    assert not host.waiting and not host.using
    phases = {model.model: model.phase for model in host.scheduler.view().models}
    evicted = any("a" in order.evict for order in host.switches)
    if evicted and not failing:
        assert phases["a"] == "ready"
    if not any(job.model == "a" for job in jobs):
        assert "a" not in host.loads()
