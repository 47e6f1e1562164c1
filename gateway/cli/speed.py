"""How fast loaded models generate, beside what their GPUs should do: memory bandwidth over the bytes that a token reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from hostler.gateway.cli.formatting import format_bytes

#: The bandwidth of a card's memory in GB/s, by what drivers call it, from the makers' data sheets; the first match counts.
_BANDWIDTH: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), bandwidth)
    for pattern, bandwidth in (
        (r"B200", 8000), (r"H200", 4800), (r"H100 PCIe", 2039), (r"H100", 3350), (r"A100.*80GB", 2039), (r"A100", 1555),
        (r"L40S?", 864), (r"RTX PRO 6000", 1792), (r"RTX 6000 Ada", 960), (r"RTX A6000", 768), (r"V100", 900), (r"\bP40\b", 346),
        (r"RTX 5090", 1792), (r"RTX 5080", 960), (r"RTX 5070 Ti", 896), (r"RTX 5070", 672), (r"RTX 5060", 448),
        (r"RTX 4090", 1008), (r"RTX 4080 Super", 736), (r"RTX 4080", 717), (r"RTX 4070 Ti Super", 672), (r"RTX 4070", 504),
        (r"RTX 4060 Ti", 288), (r"RTX 4060", 272), (r"RTX 3090 Ti", 1008), (r"RTX 3090", 936), (r"RTX 3080 Ti", 912),
        (r"RTX 3080", 760), (r"RTX 3070", 448), (r"RTX 3060 Ti", 448), (r"RTX 3060", 360), (r"MI300X", 5300), (r"MI210", 1638),
        (r"7900 XTX", 960), (r"7900 XT", 800), (r"7800 XT", 624), (r"9070", 640), (r"6800 XT", 512), (r"6900 XT", 512),
        (r"Arc.*B580", 456), (r"Arc.*A770", 560), (r"M4 Max", 546), (r"M4 Pro", 273), (r"M3 Ultra", 819), (r"M3 Max", 400),
        (r"M2 Ultra", 800), (r"M2 Max", 400), (r"M1 Ultra", 800), (r"M1 Max", 400),
    )
)  # fmt: skip
#: Of a card's bandwidth, engines reach about so much.
_REACHED: Final = 0.7
#: Less of a model than this on GPUs means that layers are left in the machine's memory.
_WHOLE: Final = 0.9


class SpeedCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded model: what its GPUs hold of it, in bytes, and its speed in tokens per second, measured and as it should be.

    `None`: unknown, or for `gpu_bytes` that the host has no GPUs. `note` says how the estimate was made, or what is wrong.
    """

    backend: str
    model: str
    gpus: tuple[str, ...]
    size: int
    gpu_bytes: int | None
    measured: float | None
    expected: float | None
    note: str


def model_speeds(status: Mapping[str, Any]) -> list[SpeedCheck]:
    """The models that are loaded on the hosts of a gateway, by its `/admin/status`."""
    sizes = {card["name"]: int(card.get("size") or 0) for card in status.get("models", ())}
    return [found for host in status.get("hosts", ()) for found in _of_host(host, sizes)]


def bandwidth_of(card: str) -> float | None:
    """The memory bandwidth of a card in GB/s, if it is known."""
    return next((float(bandwidth) for pattern, bandwidth in _BANDWIDTH if pattern.search(card)), None)


def speed_rows(speeds: Iterable[SpeedCheck]) -> list[tuple[str, ...]]:
    """The rows of a table: host, model, GPUs, what is on them, measured, expected, note."""
    return [
        (
            each.backend,
            each.model,
            ", ".join(each.gpus) or "none",
            "-" if each.gpu_bytes is None else f"{format_bytes(each.gpu_bytes)} of {format_bytes(each.size)}",
            "-" if each.measured is None else f"{each.measured:.0f} t/s",
            "-" if each.expected is None else f"{each.expected:.0f} t/s",
            each.note,
        )
        for each in speeds
    ]


def _of_host(view: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[SpeedCheck]:
    host = view.get("host") or {}
    cards = {device["name"]: device.get("model") or device["name"] for device in host.get("devices", ())}
    measured = {engine["model"]: engine.get("tokens_per_s") for engine in view.get("engines", ())}
    for model in host.get("models", ()):
        size = sizes.get(model["model"], 0)
        if model.get("state") != "ready" or not size:
            continue
        used = model.get("device_bytes") or {}
        held = int(model.get("gpu_bytes") or sum(used.values())) if cards else None
        gpus = tuple(cards[name] for name in cards if not used or name in used) if held else ()
        expected, note = _estimate(size, held, gpus)
        yield SpeedCheck(
            backend=view["backend"], model=model["model"], gpus=gpus, size=size, gpu_bytes=held,
            measured=measured.get(model["model"]), expected=expected, note=note,
        )  # fmt: skip


def _estimate(size: int, held: int | None, gpus: Sequence[str]) -> tuple[float | None, str]:
    """Tokens per second, and how that was estimated; or what keeps the GPUs from being used."""
    if held is None:
        return None, "this host has no GPU"
    if not held:
        return None, "runs on the CPU: raise gpu_layers, or get a llama-server for this GPU (docs/engines.md)"
    if held < _WHOLE * size:
        return None, f"{1 - held / size:.0%} is in the machine's memory: a smaller quantization or context would fit"
    known = [bandwidth for card in gpus if (bandwidth := bandwidth_of(card)) is not None]
    if not known or len(known) < len(gpus):
        return None, "the memory bandwidth of this GPU is not known"
    slowest = min(known)  # layers are split over several, and a token passes one after the other
    expected = _REACHED * slowest * 1e9 / size
    return expected, f"{_REACHED:.0%} of {slowest:.0f} GB/s, over {size / 1e9:.1f} GB per token; with experts, more"
