"""Cards, sensors and the memory of processes, as Linux shows them."""

from __future__ import annotations

from hostler.supervisor.devices.drm import (
    all_pids,
    find_cards,
    kernel_driver,
    process_memory,
    read_number,
    read_sensor,
    read_text,
)

from .conftest import FakeFiles


def test_finds_the_cards_of_a_vendor_by_address(files: FakeFiles) -> None:
    root = files({})
    for name, address, vendor in (
        ("card1", "0000:03:00.0", "0x1"),
        ("card0", "0000:0a:00.0", "0x1"),
        ("card2", "x", "0x2"),
    ):
        device = root / "sys/devices" / address
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor)
        card = root / "sys/class/drm" / name
        card.mkdir(parents=True)
        (card / "device").symlink_to(device)
    assert [card.address for card in find_cards(root, "0x1")] == ["0000:03:00.0", "0000:0a:00.0"]
    assert find_cards(root / "nowhere", "0x1") == []


def test_a_driver_is_named_with_its_version_or_that_of_its_kernel(files: FakeFiles) -> None:
    root = files({"sys/class/drm/card0/device/vendor": "0x1", "sys/bus/pci/drivers/amdgpu/bind": ""})
    (card,) = find_cards(root, "0x1")
    assert kernel_driver(root, card) == ""
    (card.folder / "driver").symlink_to(root / "sys/bus/pci/drivers/amdgpu")
    assert kernel_driver(root, card) == "amdgpu"
    files({"proc/sys/kernel/osrelease": "6.8.0-49-generic\n"})
    assert kernel_driver(root, card) == "amdgpu of Linux 6.8.0-49-generic"
    files({"sys/module/amdgpu/version": "6.10.5\n"})
    assert kernel_driver(root, card) == "amdgpu 6.10.5"


def test_what_cannot_be_read_is_none(files: FakeFiles) -> None:
    root = files({"a": "words\n", "b": "12\n"})
    assert (read_text(root / "a"), read_text(root / "c")) == ("words", None)
    assert (read_number(root / "a"), read_number(root / "b"), read_number(root / "c")) == (None, 12, None)


def test_takes_the_first_sensor_that_there_is(files: FakeFiles) -> None:
    root = files({"sys/class/drm/card0/device/vendor": "0x1", "sys/class/drm/card0/device/hwmon/hwmon2/b": "1500"})
    (card,) = find_cards(root, "0x1")
    assert read_sensor(card, ("a", "b"), 1000) == 1.5
    assert read_sensor(card, ("a",), 1000) is None


def test_processes_have_memory_on_several_cards(files: FakeFiles) -> None:
    root = files(
        {
            "proc/5/fdinfo/1": "drm-pdev: one\ndrm-client-id: 1\ndrm-memory-vram: 7\n",
            "proc/5/fdinfo/2": "drm-pdev: one\ndrm-client-id: 2\ndrm-memory-vram: 1 KiB\ndrm-memory-gtt: 9\n",
            "proc/6/fdinfo/1": "drm-pdev: two\ndrm-client-id: 3\ndrm-memory-vram: many\n",
            "proc/self": "",
        }
    )
    assert process_memory(root, all_pids(root), ("vram",)) == {"one": {5: 1031}, "two": {6: 0}}
    assert process_memory(root, [99], ("vram",)) == {}
    assert all_pids(root / "nowhere") == []
