"""How much memory of each GPU an engine takes, or will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.llama_arguments import argument_value
from hostler.supervisor.memory import MemoryNeed, PeakMemory, offloaded_share


def device_needs(
    profile: Profile, need: MemoryNeed, peak: PeakMemory | None, facts: ModelFacts | None, devices: Mapping[str, int]
) -> dict[str, int]:
    """What an engine of `profile` takes of each device, in bytes. `devices` are those of the host with their sizes.

    As measured, if a driver has reported it; else the need is split by `--tensor-split`, or in the proportion of the
    devices' sizes, as engines do. What `gpu_layers` leaves in the machine's memory does not count.
    """
    names = list(devices) if profile.devices is None else list(profile.devices)
    share = offloaded_share(profile, facts)
    if not names or not share:
        return {}
    if peak is not None and peak.devices and not need.declared:
        measured = sum(peak.devices.values())
        # Until it was measured at work, what it will need beyond that is expected in the same proportion.
        missing = max(0, int(need.total * share) - measured) if not peak.settled else 0
        return {name: amount + missing * amount // measured for name, amount in peak.devices.items()}
    weights = _split(profile, names, devices)
    whole = sum(weights)
    return {
        name: int(need.total * share * weight / whole) for name, weight in zip(names, weights, strict=True) if weight
    }


def _split(profile: Profile, names: Sequence[str], devices: Mapping[str, int]) -> list[float]:
    text = argument_value(profile.args, "-ts", "--tensor-split") or ""
    try:
        given = [float(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        given = []
    if len(given) == len(names) and sum(given) > 0 and min(given) >= 0:
        return given
    sizes = [float(devices.get(name, 0)) for name in names]
    return sizes if all(sizes) else [1.0] * len(names)
