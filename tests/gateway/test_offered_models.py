"""What registries offer to operators: sizes, what fits, licences, and the references that get it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.model_folders import write_chat, write_projector
from fakes.scripted_hub import ScriptedHub, hub_environment, running_hub

from hostler.gateway.model_offer import ModelOffer
from hostler.gateway.offered_models import OfferedModels
from hostler.profiles.downloads import Cancellation
from hostler.profiles.sources import SourceError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHub]:
    with running_hub() as scripted:
        environ = {**hub_environment(scripted, str(tmp_path / "huggingface")), "HOSTLER_CACHE": str(tmp_path / "cache")}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        content = write_chat(tmp_path / "m.gguf").read_bytes()
        scripted.add("org/m", "m-Q4_K_M.gguf", content)
        scripted.add("org/m", "m-Q8_0.gguf", content + b"\0" * 4096)
        scripted.add("org/m", "mmproj-F16.gguf", write_projector(tmp_path / "p.gguf").read_bytes())
        scripted.licenses["org/m"] = "mit"
        yield scripted


def offer(name: str) -> ModelOffer:
    found = OfferedModels(None, lambda: 0).offer(name, Cancellation())
    assert found is not None
    return found


def test_an_offer_has_sizes_and_what_belongs_to_the_model(hub: ScriptedHub) -> None:
    found = offer("org/m:Q8_0")
    assert (found.repository, found.licenses, found.projector) == ("org/m", ("mit",), "mmproj-F16.gguf")
    assert "GiB of memory" in found.room and found.projector_size > 0
    assert [(each.quantization, each.name, each.files, each.chosen) for each in found.models] == [
        ("Q4_K_M", "m-q4_k_m", 1, False), ("Q8_0", "m-q8_0", 1, True)
    ]  # fmt: skip
    assert found.models[0].size == len(hub.files["org/m/m-Q4_K_M.gguf"])


def test_a_reference_gets_the_very_file_of_its_row(hub: ScriptedHub) -> None:
    row = offer("org/m@v2").models[0]
    assert row.reference == "hf.co/org/m@v2/m-Q4_K_M.gguf"
    got = OfferedModels(None, lambda: 0).get(offer("org/m").models[0].reference, "mine", lambda _: None, Cancellation())
    assert got.entry.model == "hf:org/m/m-Q4_K_M.gguf" and got.entry.aliases == ("hf.co/org/m:Q4_K_M",) and got.why


def test_a_model_of_ollama_s_registry_is_offered_with_its_licence(hub: ScriptedHub) -> None:
    hub.add_registry_model("library/qwen3", "8b", model=hub.files["org/m/m-Q8_0.gguf"], license=b"Apache")
    found = offer("qwen3:8b")
    assert (found.repository, found.licenses) == ("library/qwen3", ("Apache",))
    assert [(each.name, each.quantization, each.chosen) for each in found.models] == [("qwen3:8b", "8b", True)]
    got = OfferedModels(None, lambda: 0).get(found.models[0].reference, "mine", lambda _: None, Cancellation())
    assert got.preset is not None and got.preset.license == ("Apache",)


def test_words_are_searched_for_and_name_no_model(hub: ScriptedHub) -> None:
    subject = OfferedModels(None, lambda: 0)
    assert [each.name for each in subject.search("m", Cancellation())] == ["org/m"]
    assert subject.offer("some words", Cancellation()) is None
    with pytest.raises(SourceError, match="names no model of a registry"):
        subject.get("words", "x", lambda _: None, Cancellation())
