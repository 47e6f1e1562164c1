"""`nvidia-smi`, replaced by a script with its output."""

from __future__ import annotations

import pytest

from hostler.supervisor.devices.nvidia_smi import NvidiaSmiSource
from hostler.supervisor.devices.reading import DeviceError, DeviceReading

from .conftest import FakeTool

MIB = 1024**2

TWO = r"""case "$1" in
--query-gpu=driver_version) echo 550.54.15; echo 550.54.15;;
--query-gpu=*) echo 'GPU-a, NVIDIA GeForce RTX 3090, 24576, 9041, 12, 41, 33.81'
  echo 'GPU-b, NVIDIA RTX A2000, 6138, 0, [N/A], 38, [Not Supported]';;
--query-compute-apps=*) echo 'GPU-a, 4711, 8000'; echo 'GPU-a, 4712, 500';;
esac"""


def read(tool: FakeTool, script: str) -> list[DeviceReading]:
    tool("nvidia-smi", script)
    source = NvidiaSmiSource.find()
    assert source is not None
    return source.read(())


def test_reads_devices_and_processes(tool: FakeTool) -> None:
    first, second = read(tool, TWO)
    assert first == DeviceReading(
        id="GPU-a", vendor="nvidia", model="NVIDIA GeForce RTX 3090", total=24576 * MIB, used=9041 * MIB, utilization=12,
        temperature_c=41, power_w=33.81, processes={4711: 8000 * MIB, 4712: 500 * MIB}, driver="550.54.15",
    )  # fmt: skip
    assert (second.utilization, second.power_w, second.processes, second.driver) == (None, None, {}, "550.54.15")


@pytest.mark.parametrize("told", ["echo '[N/A]'", "echo", "exit 9", "echo '1, 2, 3'"])
def test_a_driver_that_the_tool_does_not_tell_is_unknown(tool: FakeTool, told: str) -> None:
    first, _ = read(tool, TWO.replace("echo 550.54.15; echo 550.54.15", told))
    assert (first.used, first.driver) == (9041 * MIB, "")


def test_a_device_without_memory_of_its_own_uses_the_machines(tool: FakeTool) -> None:
    (device,) = read(tool, '[ "${1#--query-gpu}" = "$1" ] || echo "GPU-g, NVIDIA GB10, [N/A], [N/A], 3, 40, 9.5"')
    assert device.unified and device.total is not None


def test_amounts_that_are_hidden_in_a_container_are_unknown(tool: FakeTool) -> None:
    script = TWO.replace("4712, 500", "4712, [N/A]")
    assert [device.processes for device in read(tool, script)] == [None, None]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'NVIDIA-SMI has failed' >&2; exit 9", "exited with 9: NVIDIA-SMI has failed"),
        ("echo 'No devices were found'", "unexpected output"),
        (TWO.replace("24576, 9041", "nan, 1"), "memory of GPU-a: nan"),
        (TWO.replace("24576, 9041", "1e999, 1"), "memory of GPU-a: 1e999"),
        (TWO.replace("24576, 9041", "-1, 1"), "memory of GPU-a: -1"),
        (TWO.replace("24576, 9041", "[Unknown Error], [Unknown Error]"), r"memory of GPU-a: \[Unknown Error\]"),
    ],
)
def test_a_tool_that_fails_is_an_error(tool: FakeTool, script: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        read(tool, script)


def test_values_that_are_no_amounts_are_unknown(tool: FakeTool) -> None:
    first, _ = read(tool, TWO.replace("9041, 12, 41, 33.81", "nan, inf, -nan, 1e400"))
    assert (first.used, first.utilization, first.temperature_c, first.power_w) == (None, None, None, None)


def test_without_the_tool_there_is_no_source(tool: FakeTool) -> None:
    assert NvidiaSmiSource.find() is None
