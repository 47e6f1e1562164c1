"""Names of GPUs, what models may take of them, and when idle models leave for other programs."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import DeviceSettings
from hostler.supervisor.contract import DeviceStatus
from hostler.supervisor.devices.reading import DeviceReading
from hostler.supervisor.devices.tracker import SETTLED_S, DeviceTracker, EngineId
from hostler.supervisor.memory import GIB

CARD = DeviceReading(id="GPU-a", vendor="nvidia", total=24 * GIB, used=0)
QWEN = {("qwen", 1): {"gpu0": 10 * GIB}}


class Tracked:
    """A tracker of one GPU; its clock moves on by `every_s` with each reading."""

    def __init__(self, budget: int | None = None, *, yields: bool = False, every_s: float = SETTLED_S) -> None:
        settings = DeviceSettings(budget=None if budget is None else Size(budget))
        self.tracker = DeviceTracker({"gpu0": settings}, yield_to_others=yields)
        self.every_s = every_s
        self._now = 0.0

    @property
    def status(self) -> DeviceStatus:
        (status,) = self.tracker.statuses
        return status

    def read(
        self,
        used: int,
        engines: Mapping[EngineId, Mapping[str, int]] | None = None,
        *,
        times: int = 1,
        steady: bool = True,
    ) -> DeviceStatus:
        for _ in range(times):
            self._now += self.every_s
            reading = msgspec.structs.replace(CARD, used=used)
            self.tracker.update([reading], engines or {}, self._now, steady=steady)
        return self.status


def test_a_budget_holds_without_any_reading() -> None:
    tracked = Tracked(22 * GIB)
    assert tracked.status == DeviceStatus(name="gpu0", budget_bytes=22 * GIB, capacity_bytes=22 * GIB)
    tracked.tracker.update([], {}, 1.0, steady=True)
    assert tracked.status.capacity_bytes == 22 * GIB
    status = tracked.read(GIB)
    assert msgspec.json.decode(msgspec.json.encode(status), type=DeviceStatus) == status


def test_what_other_programs_take_is_not_left_for_models() -> None:
    tracked = Tracked(22 * GIB)
    first = tracked.read(11 * GIB, QWEN)
    assert (first.other_bytes, first.capacity_bytes) == (GIB, 22 * GIB)
    later = tracked.read(18 * GIB, QWEN, times=2)
    assert (later.other_bytes, later.capacity_bytes) == (8 * GIB, 16 * GIB)
    assert tracked.read(11 * GIB, QWEN).other_bytes == GIB


def test_a_device_without_a_limit_of_its_own_is_shown_and_limits_nothing() -> None:
    tracker = DeviceTracker({})
    tracker.update([msgspec.structs.replace(CARD, used=GIB)], {}, 1.0, steady=True)
    (status,) = tracker.statuses
    assert (status.name, status.used_bytes, status.capacity_bytes) == ("gpu0", GIB, None)


def test_memory_that_a_driver_has_not_freed_yet_is_not_taken_for_others() -> None:
    tracked = Tracked(every_s=0.1)
    tracked.read(10 * GIB, QWEN)
    # The engine has ended, and its memory is still there.
    assert tracked.read(10 * GIB, times=20).other_bytes == 0
    assert tracked.read(0, times=100).other_bytes == 0


def test_a_peak_is_not_taken_for_what_others_keep() -> None:
    tracked = Tracked(every_s=SETTLED_S / 4)
    tracked.read(0)
    tracked.read(9 * GIB)
    tracked.read(3 * GIB)
    assert tracked.read(9 * GIB, times=3).other_bytes == 3 * GIB


def test_others_are_not_judged_while_an_engine_starts() -> None:
    tracked = Tracked()
    tracked.read(0)
    for used in (2, 6, 10):
        tracked.read(used * GIB, {("qwen", 1): {}}, steady=False)
    assert tracked.status.other_bytes == 0


def grown(tracked: Tracked, others: int) -> bool:
    """Whether idle models leave once others have so much beside a model of 10 GiB."""
    return tracked.read(10 * GIB + others, QWEN, times=2).yielding


def test_idle_models_leave_when_others_have_grown_and_little_is_free() -> None:
    tracked = Tracked(yields=True)
    assert not grown(tracked, 0)
    assert not grown(tracked, 5 * GIB)
    assert grown(tracked, 13 * GIB + GIB // 2)


def test_models_stay_as_long_as_others_leave_them_room() -> None:
    tracked = Tracked(12 * GIB, yields=True)
    assert not grown(tracked, 0)
    assert not grown(tracked, 11 * GIB)
    assert Tracked(22 * GIB, yields=True).read(15 * GIB, QWEN).yielding is False


def test_a_model_that_fills_the_device_does_not_leave_by_itself() -> None:
    tracked = Tracked(yields=True)
    full = {("large", 1): {"gpu0": 23 * GIB}}
    assert not tracked.read(24 * GIB - 1000, full, times=3).yielding


def test_nothing_leaves_unless_that_is_set() -> None:
    tracked = Tracked()
    assert not grown(tracked, 0)
    assert not grown(tracked, 13 * GIB + GIB // 2)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans()), max_size=12), st.integers(1, 30))
def test_capacity_is_never_more_than_budget_or_device(steps: list[tuple[int, int, bool]], budget: int) -> None:
    tracked = Tracked(budget * GIB, yields=True, every_s=3.0)
    most = 0
    for used, loaded, steady in steps:
        most = max(most, used * GIB)
        status = tracked.read(used * GIB, {("a", 1): {"gpu0": loaded * GIB}}, steady=steady)
        assert status.capacity_bytes is not None
        assert 0 <= status.capacity_bytes <= min(budget * GIB, 24 * GIB)
        assert 0 <= status.other_bytes <= most
