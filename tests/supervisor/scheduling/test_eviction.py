"""Which models are evicted for another one, by the host's capacity."""

from __future__ import annotations

from itertools import chain, combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.supervisor.scheduling.eviction import HostCapacity, ModelFootprint, models_to_evict

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
