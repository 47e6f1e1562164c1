"""Settings of LM Studio for a model, by their keys."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.gateway.importing.lmstudio_settings import ModelSettings


def collect(*given: tuple[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The profile that the values make, and what was noted about each."""
    settings, notes, profile = ModelSettings(), list[tuple[str, str]](), dict[str, Any]()
    for key, value in given:
        settings.set(key, value, lambda kind, text: notes.append((kind, text)))
    settings.add_to(profile)
    return profile, notes


def test_a_later_value_replaces_an_earlier_one() -> None:
    profile, _ = collect(
        ("llm.load.llama.flashAttention", True), ("llm.load.llama.flashAttention", False),
        ("llm.load.contextLength", 10), ("llm.load.contextLength", 20),
    )  # fmt: skip
    assert profile == {"context": 20, "args": ["--flash-attn", "off"]}


def test_a_value_without_its_check_mark_takes_back_an_earlier_one() -> None:
    unmarked = {"checked": False, "value": 1}
    profile, notes = collect(
        ("llm.prediction.minPSampling", 0.1), ("llm.prediction.minPSampling", unmarked),
        ("llm.load.seed", 7), ("llm.load.seed", unmarked),
    )  # fmt: skip
    assert profile == {} and notes[-1] == ("taken", "is switched off")


@pytest.mark.parametrize(
    ("key", "value", "layers", "kind"),
    [
        ("llm.load.llama.acceleration.offloadRatio", "max", "all", "taken"),
        ("embedding.load.llama.acceleration.offloadRatio", 0, 0, "taken"),
        ("llm.load.llama.acceleration.offloadRatio", 0.5, "auto", "changed"),
    ],
)
def test_a_share_of_the_layers_is_what_the_gpu_has(key: str, value: Any, layers: Any, kind: str) -> None:
    profile, ((noted, _),) = collect((key, value))
    assert (profile["gpu_layers"], noted) == (layers, kind)


@pytest.mark.parametrize(
    ("key", "way_out"),
    [
        ("llm.prediction.promptTemplate", "--chat-template-file"),
        ("load.gpuSplitConfig", "--tensor-split"),
        ("llm.load.llama.autoFit", "fitted"),
        ("llm.load.neverHeardOf", "Hostler has no such setting"),
    ],
)
def test_a_setting_without_a_counterpart_says_what_there_is_instead(key: str, way_out: str) -> None:
    profile, ((kind, text),) = collect((key, {"type": "x"}))
    assert kind == "missing" and way_out in text and profile == {}
