"""Which GPUs an engine sees."""

from __future__ import annotations

import pytest

from hostler.supervisor.contract import DeviceStatus
from hostler.supervisor.devices.visibility import visible_devices

MIXED = (
    DeviceStatus(name="gpu0", vendor="nvidia", id="GPU-a"),
    DeviceStatus(name="gpu1", vendor="nvidia", id="GPU-b"),
    DeviceStatus(name="gpu2", vendor="amd", id="0000:03:00.0"),
    DeviceStatus(name="gpu3", vendor="intel", id="0000:04:00.0"),
)


@pytest.mark.parametrize(
    ("names", "cuda", "hip", "oneapi"),
    [
        (["gpu1"], "GPU-b", "-1", None),
        (["gpu0", "gpu1"], "GPU-a,GPU-b", "-1", None),
        (["gpu2"], "", "0", None),
        (["gpu3"], "", "-1", "level_zero:0"),
    ],
)
def test_names_devices_as_each_library_does(names: list[str], cuda: str, hip: str, oneapi: str | None) -> None:
    seen = visible_devices(names, MIXED)
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["HIP_VISIBLE_DEVICES"]) == (cuda, hip)
    assert seen.get("ONEAPI_DEVICE_SELECTOR") == oneapi
    assert "GGML_VK_VISIBLE_DEVICES" not in seen


def test_an_empty_list_hides_all() -> None:
    hidden = visible_devices([], MIXED)
    assert (hidden["CUDA_VISIBLE_DEVICES"], hidden["HIP_VISIBLE_DEVICES"], hidden["GGML_VK_VISIBLE_DEVICES"]) == (
        "", "-1", "",
    )  # fmt: skip


def test_devices_that_cannot_be_read_are_counted() -> None:
    seen = visible_devices(["gpu1", "gpu2"], (DeviceStatus(name="gpu1"),))
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["CUDA_DEVICE_ORDER"]) == ("1,2", "PCI_BUS_ID")


def test_without_a_choice_nothing_is_set() -> None:
    assert visible_devices(None, MIXED) == {}
