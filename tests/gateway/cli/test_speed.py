"""What a model's GPUs hold of it, and its speed beside what they should do, from recorded readings."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.gateway.cli.speed import bandwidth_of, model_speeds, speed_rows

GB = 10**9


def status(
    *, gpus: tuple[str, ...] = ("NVIDIA GeForce RTX 4090",), held: int = 5 * GB, size: int = 5 * GB, state: str = "ready",
    measured: float | None = 118.4,
) -> dict[str, Any]:  # fmt: skip
    devices = [{"name": f"gpu{number}", "model": card} for number, card in enumerate(gpus)]
    used = {device["name"]: held // len(devices) for device in devices} if held and devices else {}
    model = {"model": "m", "state": state, "gpu_bytes": held, "device_bytes": used}
    engines = [{"model": "m", "tokens_per_s": measured}]
    hosts = [{"backend": "pc", "host": {"devices": devices, "models": [model]}, "engines": engines}]
    return {"models": [{"name": "m", "size": size}], "hosts": [*hosts, {"backend": "away", "host": None}]}


def test_a_model_on_a_gpu_has_its_speed_beside_the_expected_one() -> None:
    (found,) = model_speeds(status())
    assert (found.backend, found.gpus, found.measured) == ("pc", ("NVIDIA GeForce RTX 4090",), 118.4)
    assert found.expected == pytest.approx(141, abs=1)
    assert speed_rows([found]) == [
        ("pc", "m", "NVIDIA GeForce RTX 4090", "4.7 GiB of 4.7 GiB", "118 t/s", "141 t/s",
         "70% of 1008 GB/s, over 5.0 GB per token; with experts, more"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reading", "note"),
    [
        ({"gpus": (), "held": 0}, "this host has no GPU"),
        ({"held": 0}, "runs on the CPU: raise gpu_layers"),
        ({"held": 2 * GB}, "60% is in the machine's memory"),
        ({"gpus": ("Something new",)}, "bandwidth of this GPU is not known"),
        ({"gpus": ("RTX 3060", "Something new")}, "bandwidth of this GPU is not known"),
    ],
)
def test_without_an_estimate_it_is_said_why(reading: dict[str, Any], note: str) -> None:
    (found,) = model_speeds(status(**reading, measured=None))
    assert found.expected is None and note in found.note
    assert speed_rows([found])[0][4:6] == ("-", "-")


def test_the_slowest_of_several_cards_counts() -> None:
    (found,) = model_speeds(status(gpus=("RTX 3060", "RTX 3090")))
    assert found.expected == pytest.approx(0.7 * 360 / 5)


def test_models_that_are_not_loaded_or_of_unknown_size_are_left_out() -> None:
    assert model_speeds(status(state="stopped")) == [] == model_speeds(status(size=0))
    assert model_speeds({}) == []


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 672), ("NVIDIA GeForce RTX 4070", 504), ("NVIDIA H200", 4800),
        ("NVIDIA H100 PCIe", 2039), ("NVIDIA H100 80GB HBM3", 3350), ("AMD Radeon RX 7900 XTX", 960),
        ("AMD Radeon RX 7900 XT", 800), ("Apple M3 Max", 400), ("Intel(R) Arc(TM) B580 Graphics", 456), ("", None),
    ],
)  # fmt: skip
def test_cards_are_known_by_what_drivers_call_them(card: str, expected: float | None) -> None:
    assert bandwidth_of(card) == expected
