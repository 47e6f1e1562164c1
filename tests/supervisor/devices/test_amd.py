"""AMD cards by the driver's files, of a separate card and of an APU."""

from __future__ import annotations

from hostler.supervisor.devices.amd import AmdSource
from hostler.supervisor.devices.reading import DeviceReading
from hostler.supervisor.memory import GIB

from .conftest import FakeFiles

CARD = {
    "sys/class/drm/card1/device/vendor": "0x1002\n",
    "sys/class/drm/card1/device/product_name": "Radeon RX 7900 XTX\n",
    "sys/class/drm/card1/device/mem_info_vram_total": f"{24 * GIB}\n",
    "sys/class/drm/card1/device/mem_info_vram_used": f"{6 * GIB}\n",
    "sys/class/drm/card1/device/mem_info_vram_vendor": "samsung\n",
    "sys/class/drm/card1/device/mem_info_gtt_total": f"{32 * GIB}\n",
    "sys/class/drm/card1/device/mem_info_gtt_used": f"{1 * GIB}\n",
    "sys/class/drm/card1/device/gpu_busy_percent": "93\n",
    "sys/class/drm/card1/device/hwmon/hwmon3/temp1_input": "54000\n",
    "sys/class/drm/card1/device/hwmon/hwmon3/power1_average": "251000000\n",
    "sys/class/drm/card1-DP-1/status": "connected\n",
    "proc/77/fdinfo/20": "drm-driver:\tamdgpu\ndrm-pdev:\tdevice\ndrm-client-id:\t9\ndrm-memory-vram:\t5242880 KiB\n"
    "drm-memory-gtt: \t1024 KiB\n",
    # The same client, by a duplicate of the descriptor.
    "proc/77/fdinfo/21": "drm-driver:\tamdgpu\ndrm-pdev:\tdevice\ndrm-client-id:\t9\ndrm-memory-vram:\t5242880 KiB\n",
    "proc/77/fdinfo/3": "pos:\t0\nflags:\t02\n",
}

APU = {
    "sys/class/drm/card0/device/vendor": "0x1002\n",
    "sys/class/drm/card0/device/mem_info_vram_total": f"{GIB // 2}\n",
    "sys/class/drm/card0/device/mem_info_vram_used": "1000\n",
    "sys/class/drm/card0/device/mem_info_gtt_total": f"{96 * GIB}\n",
    "sys/class/drm/card0/device/mem_info_gtt_used": f"{7 * GIB}\n",
    "sys/class/drm/card0/device/hwmon/hwmon1/power1_input": "18500000\n",
    "proc/77/fdinfo/20": "drm-pdev:\tdevice\ndrm-client-id:\t9\ndrm-total-vram:\t8 MiB\ndrm-resident-vram:\t4 MiB\n"
    "drm-resident-gtt:\t2 MiB\n",
}


def test_a_separate_card_has_its_own_memory_only(files: FakeFiles) -> None:
    root = files(CARD | {"sys/bus/pci/drivers/amdgpu/bind": "", "sys/module/amdgpu/version": "6.10.5\n"})
    (root / "sys/class/drm/card1/device/driver").symlink_to(root / "sys/bus/pci/drivers/amdgpu")
    source = AmdSource.find(root)
    assert source is not None
    assert source.read([77, 78]) == [
        DeviceReading(
            id="device", vendor="amd", model="Radeon RX 7900 XTX", total=24 * GIB, used=6 * GIB, utilization=93,
            temperature_c=54, power_w=251, processes={77: 5 * GIB}, driver="amdgpu 6.10.5",
        )
    ]  # fmt: skip


def test_an_apu_works_in_the_machines_memory_too(files: FakeFiles) -> None:
    source = AmdSource.find(files(APU))
    assert source is not None
    (device,) = source.read([77])
    assert (device.total, device.used, device.unified) == (96 * GIB + GIB // 2, 7 * GIB + 1000, True)
    assert (device.power_w, device.utilization, device.processes) == (18.5, None, {77: 6 * 1024**2})


def test_there_is_no_source_without_such_a_card(files: FakeFiles) -> None:
    assert AmdSource.find(files({"sys/class/drm/card0/device/vendor": "0x1002\n"})) is None
    assert AmdSource.find(files({}) / "nowhere") is None
