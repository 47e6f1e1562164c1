"""Intel cards by the drivers' files."""

from __future__ import annotations

import pytest

from hostler.supervisor.devices.intel import IntelSource
from hostler.supervisor.memory import GIB, MIB

from .conftest import FakeFiles

DEVICE = "sys/class/drm/card0/device"
REGISTERS = "0x0000004000000000 0x0000004000ffffff 0x000000000014220c\n0x0 0x0 0x0\n"
WINDOW = f"{REGISTERS}0x0000006000000000 0x{0x6000000000 + 16 * GIB - 1:016x} 0x000000000014220c\n"

XE = {
    f"{DEVICE}/vendor": "0x8086\n",
    f"{DEVICE}/resource": WINDOW,
    f"{DEVICE}/hwmon/hwmon0/temp2_input": "47000\n",
    "proc/5/fdinfo/8": "drm-driver:\txe\ndrm-pdev:\tdevice\ndrm-client-id:\t3\ndrm-total-vram0:\t300 MiB\n"
    "drm-resident-vram0:\t200 MiB\n",
    "proc/6/fdinfo/8": "drm-driver:\txe\ndrm-pdev:\tdevice\ndrm-client-id:\t4\ndrm-total-vram0:\t51200 KiB\n",
}


def test_sums_up_what_processes_have_of_a_card(files: FakeFiles) -> None:
    root = files(XE | {"sys/bus/pci/drivers/xe/bind": "", "proc/sys/kernel/osrelease": "6.14.2\n"})
    (root / DEVICE / "driver").symlink_to(root / "sys/bus/pci/drivers/xe")
    source = IntelSource.find(root)
    assert source is not None
    (device,) = source.read(())
    assert device.driver == "xe of Linux 6.14.2"
    assert (device.total, device.used, device.temperature_c) == (16 * GIB, 250 * MIB, 47)
    assert device.processes == {5: 200 * MIB, 6: 50 * MIB}


@pytest.mark.parametrize("name", ["lmem_total_bytes", "tile0/physical_vram_size_bytes"])
def test_the_drivers_own_figures_win(files: FakeFiles, name: str) -> None:
    root = files(XE | {f"{DEVICE}/{name}": f"{8 * GIB}\n", f"{DEVICE}/lmem_avail_bytes": f"{5 * GIB}\n"})
    source = IntelSource.find(root)
    assert source is not None
    (device,) = source.read(())
    assert (device.total, device.used) == (8 * GIB, 3 * GIB)


def test_a_gpu_without_memory_of_its_own_is_left_out(files: FakeFiles) -> None:
    assert IntelSource.find(files({f"{DEVICE}/vendor": "0x8086\n", f"{DEVICE}/resource": REGISTERS})) is None
