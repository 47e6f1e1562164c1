"""Which models are evicted for another one, by the host's capacity."""

from __future__ import annotations

from itertools import chain, combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.supervisor.scheduling.eviction import HostCapacity, ModelFootprint, models_to_evict, models_to_yield

EXCLUSIVE, TEN = HostCapacity(), HostCapacity(exclusive=False, budget_bytes=10)


def model(name: str, size: int = 0, **more: object) -> ModelFootprint:
    return ModelFootprint(model=name, memory_bytes=size, **more)  # type: ignore[arg-type]  # passes the other fields on


def test_an_exclusive_host_evicts_all_others() -> None:
    assert models_to_evict(model("c"), [model("a"), model("b", activity="busy")], EXCLUSIVE) == {"a", "b"}


def test_a_pinned_model_runs_beside_the_exclusive_one() -> None:
    assert models_to_evict(model("b"), [model("p", pinned=True), model("a")], EXCLUSIVE) == {"a"}
    assert models_to_evict(model("p", pinned=True), [model("a")], EXCLUSIVE) == frozenset()


def test_a_model_is_never_evicted_for_itself() -> None:
    assert models_to_evict(model("a"), [model("a")], EXCLUSIVE) == frozenset()


def test_models_that_fit_beside_each_other_stay() -> None:
    assert models_to_evict(model("b", 4), [model("a", 6)], TEN) == frozenset()


def test_without_a_budget_nothing_is_evicted() -> None:
    assert models_to_evict(model("b", 400), [model("a", 600)], HostCapacity(exclusive=False)) == frozenset()


def test_the_least_recently_used_is_evicted_first() -> None:
    live = [model("new", 5, used_at=9.0), model("old", 5, used_at=1.0)]
    assert models_to_evict(model("c", 5), live, TEN) == {"old"}


def test_one_is_evicted_rather_than_two() -> None:
    live = [model("a", 2, used_at=1.0), model("b", 2, used_at=2.0), model("large", 6, used_at=3.0)]
    assert models_to_evict(model("c", 4), live, TEN) == {"large"}


def test_idle_models_are_evicted_before_a_busy_one() -> None:
    live = [model("a", 2), model("b", 2), model("large", 6, activity="busy")]
    assert models_to_evict(model("c", 4), live, TEN) == {"a", "b"}


def test_moving_models_are_evicted_last() -> None:
    assert models_to_evict(model("c", 5), [model("a", 5, activity="moving"), model("b", 5, activity="busy")], TEN) == {
        "b"
    }


def test_pinned_models_may_leave_too_little_memory() -> None:
    assert models_to_evict(model("b", 5), [model("p", 6, pinned=True), model("a", 4)], TEN) is None


def test_a_model_larger_than_the_budget_never_fits() -> None:
    assert models_to_evict(model("huge", 11), [], TEN) is None


RESIDENTS = st.lists(
    st.tuples(st.integers(0, 6), st.booleans(), st.sampled_from(["idle", "busy", "moving"]), st.integers(0, 3)),
    max_size=7,
)


@given(RESIDENTS, st.integers(0, 12), st.integers(1, 20))
@settings(deadline=None, max_examples=300)
def test_evicts_enough_and_no_more_than_needed(
    entries: list[tuple[int, bool, str, int]], need: int, budget: int
) -> None:
    live = [model(str(number), size, pinned=pinned, activity=activity, used_at=float(used))
            for number, (size, pinned, activity, used) in enumerate(entries)]  # fmt: skip
    room = HostCapacity(exclusive=False, budget_bytes=budget)
    size = {entry.model: entry.memory_bytes for entry in live}
    free = [entry.model for entry in live if not entry.pinned]
    subsets = chain.from_iterable(combinations(free, count) for count in range(len(free) + 1))
    enough = [
        set(subset) for subset in subsets if sum(size.values()) - sum(size[name] for name in subset) + need <= budget
    ]
    gone = models_to_evict(model("wanted", need), live, room)
    if gone is None:
        assert not enough
        return
    assert set(gone) in enough
    assert not any(subset < gone for subset in enough), "more models went than needed"


def test_many_models_are_handled_without_a_search() -> None:
    live = [model(str(number), 1, used_at=float(number)) for number in range(40)]
    gone = models_to_evict(model("wanted", 7), live, HostCapacity(exclusive=False, budget_bytes=40))
    assert gone is not None and len(gone) == 7


QWEN_OR_FLUX = HostCapacity(
    exclusive=False, sets=(frozenset({"qwen", "embedder"}), frozenset({"flux"}), frozenset({"embedder", "whisper"}))
)


def test_a_set_stays_together_and_other_sets_leave() -> None:
    assert models_to_evict(model("embedder"), [model("qwen")], QWEN_OR_FLUX) == frozenset()
    assert models_to_evict(model("flux"), [model("qwen"), model("embedder")], QWEN_OR_FLUX) == {"qwen", "embedder"}


def test_a_model_of_no_set_runs_alone() -> None:
    assert models_to_evict(model("other"), [model("qwen"), model("embedder")], QWEN_OR_FLUX) == {"qwen", "embedder"}


def test_the_set_that_costs_least_is_chosen() -> None:
    live = [model("qwen", evict_cost=30.0), model("whisper", evict_cost=2.0)]
    assert models_to_evict(model("embedder"), live, QWEN_OR_FLUX) == {"whisper"}


def test_idle_models_leave_whatever_they_cost_before_busy_ones() -> None:
    live = [model("qwen", evict_cost=30.0), model("whisper", evict_cost=2.0, activity="busy")]
    assert models_to_evict(model("embedder"), live, QWEN_OR_FLUX) == {"qwen"}


def test_pinned_models_run_beside_every_set_and_group() -> None:
    live = [model("embedder", pinned=True), model("qwen")]
    assert models_to_evict(model("flux"), live, QWEN_OR_FLUX) == {"qwen"}
    assert models_to_evict(model("flux", pinned=True), live, QWEN_OR_FLUX) == frozenset()


def test_groups_switch_independently_of_each_other() -> None:
    groups = HostCapacity(exclusive=False, groups=(frozenset("ab"), frozenset("xy")))
    assert models_to_evict(model("b"), [model("a"), model("x"), model("free")], groups) == {"a"}


TWO_GPUS = HostCapacity(exclusive=False, devices={"gpu0": 10, "gpu1": 5})


def on(name: str, gpu0: int, gpu1: int = 0, **more: object) -> ModelFootprint:
    return model(name, device_bytes={"gpu0": gpu0, "gpu1": gpu1}, **more)


def test_each_gpu_has_a_budget_of_its_own() -> None:
    live = [on("a", 8), on("b", 0, 5)]
    assert models_to_evict(on("c", 2), live, TWO_GPUS) == frozenset()
    assert models_to_evict(on("c", 3), live, TWO_GPUS) == {"a"}
    assert models_to_evict(on("c", 3, 1), live, TWO_GPUS) == {"a", "b"}
    assert models_to_evict(on("c", 0, 6), live, TWO_GPUS) is None


def test_a_model_on_the_cpu_needs_no_gpu_though_it_has_too_much_on_it() -> None:
    assert models_to_evict(on("c", 0), [on("a", 12)], TWO_GPUS) == frozenset()


def test_an_exclusive_host_refuses_what_is_larger_than_its_gpu() -> None:
    assert models_to_evict(on("c", 11), [], HostCapacity(devices={"gpu0": 10})) is None


def test_the_least_recently_used_idle_model_yields_first() -> None:
    live = [on("new", 1, used_at=9.0), on("old", 1, used_at=2.0), on("busy", 1, activity="busy"), model("cpu")]
    needed = HostCapacity(yielding=frozenset({"gpu0"}))
    assert models_to_yield(live, needed) == "old"
    assert models_to_yield([on("p", 1, pinned=True), model("cpu")], needed) is None
    assert models_to_yield(live, HostCapacity()) is None


NAMES = "abcdef"
GROUPS = st.lists(st.frozensets(st.sampled_from([*NAMES, "wanted"]), min_size=1), max_size=3).map(tuple)
ENTRIES = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 4), st.booleans(), st.sampled_from(["idle", "busy", "moving"])),
    max_size=6,
)


def satisfied(chosen: list[ModelFootprint], wanted: ModelFootprint, capacity: HostCapacity) -> bool:
    """Whether these may run together, judged by the rules one by one. `chosen` contains `wanted`."""
    bound = {each.model for each in chosen if not each.pinned}
    for budget, limit in capacity.budgets():
        size = sum(each.bytes_of(budget) for each in chosen)
        if size > limit and (wanted.bytes_of(budget) or not budget):
            return False
    if wanted.pinned:
        return True
    if any(wanted.model in group and len(group & bound) > 1 for group in capacity.groups):
        return False
    return (
        not capacity.sets
        or bound == {wanted.model}
        or any(bound <= names for names in capacity.sets if wanted.model in names)
    )


@given(
    ENTRIES,
    st.tuples(st.integers(0, 8), st.integers(0, 5), st.booleans()),
    GROUPS,
    GROUPS,
    st.none() | st.integers(5, 20),
)
@settings(deadline=None, max_examples=500)
def test_what_stays_may_run_together_and_nothing_is_refused_that_could(
    entries: list[tuple[int, int, bool, str]], need: tuple[int, int, bool], groups: tuple[frozenset[str], ...],
    sets: tuple[frozenset[str], ...], budget: int | None,
) -> None:  # fmt: skip
    live = [
        model(name, size + more, device_bytes={"gpu0": size, "gpu1": more}, pinned=pinned, activity=activity)
        for name, (size, more, pinned, activity) in zip(NAMES, entries, strict=False)
    ]
    wanted = model("wanted", need[0] + need[1], device_bytes={"gpu0": need[0], "gpu1": need[1]}, pinned=need[2])
    capacity = HostCapacity(
        exclusive=False, budget_bytes=budget, devices={"gpu0": 10, "gpu1": 5}, groups=groups, sets=sets
    )
    gone = models_to_evict(wanted, live, capacity)
    if gone is None:
        assert not satisfied([each for each in [*live, wanted] if each.pinned or each is wanted], wanted, capacity)
        return
    assert not gone & {each.model for each in live if each.pinned}
    assert satisfied([*(each for each in live if each.model not in gone), wanted], wanted, capacity)
