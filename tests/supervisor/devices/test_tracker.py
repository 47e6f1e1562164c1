"""Names of GPUs, what models may take of them, and when idle models leave for other programs."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import DeviceSettings
from hostler.supervisor.contract import DeviceStatus
from hostler.supervisor.devices.reading import DeviceReading
from hostler.supervisor.devices.tracker import DeviceTracker
from hostler.supervisor.memory import GIB

CARD = DeviceReading(id="GPU-a", vendor="nvidia", total=24 * GIB, used=0)
QWEN = {("qwen", 1): {"gpu0": 10 * GIB}}


def using(used: int) -> list[DeviceReading]:
    return [msgspec.structs.replace(CARD, used=used)]


def tracker(budget: int | None = None, *, yields: bool = False) -> DeviceTracker:
    settings = DeviceSettings(budget=None if budget is None else Size(budget))
    return DeviceTracker({"gpu0": settings}, yield_to_others=yields)


def one(tracked: DeviceTracker) -> DeviceStatus:
    (status,) = tracked.statuses
    return status


def test_a_budget_holds_without_any_reading() -> None:
    tracked = tracker(22 * GIB)
    assert one(tracked) == DeviceStatus(name="gpu0", budget_bytes=22 * GIB, capacity_bytes=22 * GIB)
    tracked.update([], {}, steady=True)
    assert one(tracked).capacity_bytes == 22 * GIB
    tracked.update(using(GIB), {}, steady=True)
    assert msgspec.json.decode(msgspec.json.encode(one(tracked)), type=DeviceStatus) == one(tracked)


def test_what_other_programs_take_is_not_left_for_models() -> None:
    tracked = tracker(22 * GIB)
    tracked.update(using(11 * GIB), QWEN, steady=True)
    assert (one(tracked).other_bytes, one(tracked).capacity_bytes) == (GIB, 22 * GIB)
    tracked.update(using(18 * GIB), QWEN, steady=True)
    tracked.update(using(18 * GIB), QWEN, steady=True)
    assert (one(tracked).other_bytes, one(tracked).capacity_bytes) == (8 * GIB, 16 * GIB)


def test_a_device_without_a_limit_of_its_own_is_shown_and_limits_nothing() -> None:
    tracked = DeviceTracker({})
    tracked.update(using(GIB), {}, steady=True)
    assert (one(tracked).name, one(tracked).used_bytes, one(tracked).capacity_bytes) == ("gpu0", GIB, None)


def test_memory_that_a_driver_has_not_freed_yet_is_not_taken_for_others() -> None:
    tracked = tracker()
    tracked.update(using(10 * GIB), QWEN, steady=True)
    # The engine has ended, its memory is still there in one reading.
    tracked.update(using(10 * GIB), {}, steady=True)
    assert one(tracked).other_bytes == 0
    tracked.update(using(0), {}, steady=True)
    tracked.update(using(0), {}, steady=True)
    assert one(tracked).other_bytes == 0


def test_others_are_not_judged_while_an_engine_starts() -> None:
    tracked = tracker()
    tracked.update(using(0), {}, steady=True)
    for used in (2, 6, 10):
        tracked.update(using(used * GIB), {("qwen", 1): {}}, steady=False)
    assert one(tracked).other_bytes == 0


def grown(tracked: DeviceTracker, others: int) -> bool:
    for _ in range(2):
        tracked.update(using(10 * GIB + others), QWEN, steady=True)
    return one(tracked).yielding


def test_idle_models_leave_when_others_have_grown_and_little_is_free() -> None:
    tracked = tracker(yields=True)
    assert not grown(tracked, 0)
    assert not grown(tracked, 5 * GIB)
    assert grown(tracked, 13 * GIB)


def test_a_model_that_fills_the_device_does_not_leave_by_itself() -> None:
    tracked = tracker(yields=True)
    full = {("large", 1): {"gpu0": 23 * GIB}}
    for _ in range(3):
        tracked.update(using(24 * GIB - 1000), full, steady=True)
    assert not one(tracked).yielding


def test_nothing_leaves_unless_that_is_set() -> None:
    tracked = tracker()
    assert not grown(tracked, 0)
    assert not grown(tracked, 13 * GIB)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans()), max_size=12), st.integers(1, 30))
def test_capacity_is_never_more_than_budget_or_device(steps: list[tuple[int, int, bool]], budget: int) -> None:
    tracked = tracker(budget * GIB, yields=True)
    for used, loaded, steady in steps:
        tracked.update(using(used * GIB), {("a", 1): {"gpu0": loaded * GIB}}, steady=steady)
        status = one(tracked)
        assert status.capacity_bytes is not None
        assert 0 <= status.capacity_bytes <= min(budget * GIB, 24 * GIB)
        assert status.other_bytes >= 0
