"""How a model's memory is spread over GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.device_needs import device_needs
from hostler.supervisor.memory import GIB, MemoryNeed, PeakMemory

PROFILE = Profile(name="qwen", model="/m.gguf")
FACTS = ModelFacts(blocks=31)
NEED = MemoryNeed(total=12 * GIB, weights=10 * GIB, cache=2 * GIB)
TWO = {"gpu0": 24 * GIB, "gpu1": 12 * GIB}


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ({}, {"gpu0": 8 * GIB, "gpu1": 4 * GIB}),
        ({"devices": ("gpu1",)}, {"gpu1": 12 * GIB}),
        ({"devices": ()}, {}),
        ({"gpu_layers": 0}, {}),
        ({"gpu_layers": 8, "devices": ("gpu0",)}, {"gpu0": 3 * GIB}),
        ({"args": ("-ts", "1,1")}, {"gpu0": 6 * GIB, "gpu1": 6 * GIB}),
        ({"args": ("--tensor-split", "1/0")}, {"gpu0": 12 * GIB}),
        ({"args": ("-ts", "1,2,3")}, {"gpu0": 8 * GIB, "gpu1": 4 * GIB}),
        ({"args": ("-ts", "some")}, {"gpu0": 8 * GIB, "gpu1": 4 * GIB}),
    ],
)
def test_an_estimate_is_split_as_engines_split(change: dict[str, Any], needs: dict[str, int]) -> None:
    assert device_needs(replace(PROFILE, **change), NEED, None, FACTS, TWO) == needs


def test_devices_of_unknown_size_share_equally() -> None:
    assert device_needs(PROFILE, NEED, None, FACTS, {"gpu0": 0, "gpu1": 8}) == {"gpu0": 6 * GIB, "gpu1": 6 * GIB}


def test_a_reading_shows_where_the_memory_is() -> None:
    peak = PeakMemory(rss=GIB, gpu=9 * GIB, devices={"gpu0": 6 * GIB, "gpu1": 3 * GIB}, settled=True)
    assert device_needs(PROFILE, replace(NEED, total=9 * GIB), peak, FACTS, TWO) == peak.devices
    # Before it has answered, more is expected.
    waiting = replace(peak, settled=False)
    assert device_needs(PROFILE, NEED, waiting, FACTS, TWO) == {"gpu0": 8 * GIB, "gpu1": 4 * GIB}


def test_a_declared_size_is_split_whatever_was_measured() -> None:
    peak = PeakMemory(gpu=GIB, devices={"gpu1": GIB}, settled=True)
    assert device_needs(PROFILE, replace(NEED, declared=True), peak, FACTS, TWO) == {"gpu0": 8 * GIB, "gpu1": 4 * GIB}


@given(
    st.integers(0, 2**40), st.lists(st.integers(0, 2**40), min_size=1, max_size=4), st.integers(0, 40) | st.none(),
)  # fmt: skip
def test_the_parts_never_exceed_the_need(total: int, sizes: list[int], layers: int | None) -> None:
    devices = {f"gpu{index}": size for index, size in enumerate(sizes)}
    needs = device_needs(replace(PROFILE, gpu_layers=layers), MemoryNeed(total=total), None, FACTS, devices)
    assert set(needs) <= set(devices)
    assert sum(needs.values()) <= total
    if layers is None:
        assert sum(needs.values()) >= total - len(sizes) - total // 2**40
