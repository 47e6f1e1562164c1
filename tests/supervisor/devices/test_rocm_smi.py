"""`rocm-smi`, replaced by a script with its output."""

from __future__ import annotations

import pytest

from hostler.supervisor.devices.reading import DeviceError, DeviceReading
from hostler.supervisor.devices.rocm_smi import RocmSmiSource

from .conftest import FakeTool

OUTPUT = """WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status
{"card0": {"PCI Bus": "0000:03:00.0", "Card Series": "Radeon RX 7900 XTX",
 "Temperature (Sensor edge) (C)": "48.0", "Average Graphics Package Power (W)": "31.0", "GPU use (%)": "4",
 "VRAM Total Memory (B)": "25753026560", "VRAM Total Used Memory (B)": "1048576"},
 "card1": {"VRAM Total Memory (B)": "N/A"}, "system": {"Driver version": "6.10.5"}}"""


def read(tool: FakeTool, script: str) -> list[DeviceReading]:
    tool("rocm-smi", script)
    source = RocmSmiSource.find()
    assert source is not None
    return source.read(())


def test_reads_the_cards(tool: FakeTool) -> None:
    first, second = read(tool, f"while read -r line; do echo \"$line\"; done <<'END'\n{OUTPUT}\nEND")
    assert first == DeviceReading(
        id="0000:03:00.0", vendor="amd", model="Radeon RX 7900 XTX", total=25753026560, used=1048576, utilization=4,
        temperature_c=48, power_w=31, driver="amdgpu 6.10.5",
    )  # fmt: skip
    assert (second.id, second.total) == ("card1", None)


def test_other_output_is_an_error(tool: FakeTool) -> None:
    with pytest.raises(DeviceError, match="unexpected output"):
        read(tool, "echo 'No AMD GPUs'")


@pytest.mark.parametrize("words", ["nan", "1e999", "-1", "N/A", ""])
def test_a_number_that_is_no_amount_is_unknown(tool: FakeTool, words: str) -> None:
    (card,) = read(tool, f"""echo '{{"card0": {{"VRAM Total Memory (B)": "{words}", "GPU use (%)": "{words}"}}}}'""")
    assert (card.total, card.utilization) == (None, None)


def test_warnings_with_braces_around_the_object_are_skipped(tool: FakeTool) -> None:
    (card,) = read(
        tool, """echo 'WARNING: {low power}'; echo '{"card0": {"VRAM Total Memory (B)": "5"}}'; echo 'WARNING: x'"""
    )
    assert card.total == 5


@pytest.mark.parametrize("output", ["[]", "", '["card0"]', '{"card0": ', "5"])
def test_output_without_an_object_is_an_error(tool: FakeTool, output: str) -> None:
    with pytest.raises(DeviceError, match="unexpected output"):
        read(tool, f"echo '{output}'")
