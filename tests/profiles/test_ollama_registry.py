"""Models of Ollama's registry, by their manifests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.scripted_hub import ScriptedHub, hub_environment, running_hub

from hostler.profiles.downloads import Cancellation
from hostler.profiles.hub_reference import HubReference
from hostler.profiles.ollama_registry import RegistryModel, read_registry_model, registry_url
from hostler.profiles.sources import ModelSource, SourceError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHub]:
    with running_hub() as scripted:
        for name, value in hub_environment(scripted, str(tmp_path)).items():
            monkeypatch.setenv(name, value)
        yield scripted


def read(tag: str = "8b") -> RegistryModel:
    reference = HubReference(registry="ollama", repository="library/qwen3", tag=tag)
    return read_registry_model(reference, Cancellation())


def test_a_manifest_names_files_texts_and_parameters(hub: ScriptedHub) -> None:
    hub.add_registry_model(
        "library/qwen3", "8b", model=b"weights", projector=b"eyes", license=b"Apache-2.0", system=b"Be brief.",
        params=b'{"stop": ["<|im_end|>"], "temperature": 0.6, "num_ctx": 4096}', template=b"{{ .Prompt }}",
    )  # fmt: skip
    found = read()
    checksum = hashlib.sha256(b"weights").hexdigest()
    assert (found.model.sha256, found.model.size) == (checksum, 7)
    assert ModelSource.parse(found.model.url).kind == "https"
    assert found.projector is not None
    assert (found.licenses, found.system, found.template) == (("Apache-2.0",), "Be brief.", "{{ .Prompt }}")
    assert found.parameters == {"stop": ("<|im_end|>",), "temperature": 0.6, "num_ctx": 4096}


def test_mistakes_are_named(hub: ScriptedHub) -> None:
    with pytest.raises(SourceError, match="Ollama's registry has no model qwen3:8b"):
        read()
    hub.add_registry_model("library/qwen3", "8b", license=b"x")
    with pytest.raises(SourceError, match="qwen3:8b is no model in one GGUF file"):
        read()
    hub.manifests["library/qwen3/manifests/8b"]["layers"][0]["digest"] = "sha256:../../x"
    with pytest.raises(SourceError, match="names a file without its checksum"):
        read()
    hub.refusals = [(200, {})]
    with pytest.raises(SourceError, match="does not answer like Ollama's registry"):
        read()


def test_the_registry_may_be_another_one() -> None:
    assert registry_url({}) == "https://registry.ollama.ai"
    assert registry_url({"HOSTLER_OLLAMA_REGISTRY": "https://mirror.example/"}) == "https://mirror.example"
