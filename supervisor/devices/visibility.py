"""The environment variables by which an engine sees only some of the machine's GPUs."""

from __future__ import annotations

from collections.abc import Sequence

from hostler.supervisor.contract import DeviceStatus


def visible_devices(names: Sequence[str] | None, devices: Sequence[DeviceStatus]) -> dict[str, str]:
    """The variables for an engine that may use `names` of the machine's `devices`; `None`: all.

    CUDA gets identifiers, which hold in any order; ROCm and oneAPI count the devices of their vendor. Devices that were
    not found count as NVIDIA's or AMD's. Vulkan's own order cannot be known, so it is restricted only if no GPU is
    allowed.
    """
    if names is None:
        return {}
    variables = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    known = [device for device in devices if device.vendor is not None]
    if known:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(
            device.id for device in known if device.vendor == "nvidia" and device.name in names
        )
        variables["HIP_VISIBLE_DEVICES"] = (
            _indexes(names, [each.name for each in known if each.vendor == "amd"]) or "-1"
        )
        if intel := _indexes(names, [each.name for each in known if each.vendor == "intel"]):
            variables["ONEAPI_DEVICE_SELECTOR"] = f"level_zero:{intel}"
    else:
        numbers = ",".join(name.removeprefix("gpu") for name in names)
        variables |= {"CUDA_VISIBLE_DEVICES": numbers, "HIP_VISIBLE_DEVICES": numbers or "-1"}
    if not names:
        variables["GGML_VK_VISIBLE_DEVICES"] = ""
    return variables


def _indexes(names: Sequence[str], devices: Sequence[str]) -> str:
    return ",".join(str(index) for index, device in enumerate(devices) if device in names)
