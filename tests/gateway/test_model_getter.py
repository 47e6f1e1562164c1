"""Models from registries: what fits, what is downloaded, and the profile that results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.model_folders import write_chat, write_draft, write_projector
from fakes.scripted_hub import ScriptedHub, hub_environment, running_hub
from msgspec import UNSET

from hostler.gateway.model_finder import ModelFinder
from hostler.gateway.model_getter import ModelGetter
from hostler.profiles.downloads import Cancellation
from hostler.profiles.fetch import fetch_sync
from hostler.profiles.hub_reference import HubReference, parse_reference
from hostler.profiles.schema import Profile
from hostler.supervisor.engine_abilities import EngineAbilities, EngineDevice

GIB = 1024**3


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHub]:
    with running_hub() as scripted:
        for name, value in hub_environment(scripted, str(tmp_path / "huggingface")).items():
            monkeypatch.setenv(name, value)
        content = write_chat(tmp_path / "m.gguf", context_length_extra=1).read_bytes()
        scripted.add("org/m", "m-Q4_K_M.gguf", content)
        scripted.add("org/m", "m-Q8_0.gguf", content + b"\0" * 4096)
        yield scripted


def getter(tmp_path: Path, *, memory: int = 8 * GIB, gpu: int = 0) -> ModelGetter:
    devices = (EngineDevice(name="CUDA0", model="RTX", total=gpu, free=gpu),) if gpu else ()
    engine = EngineAbilities(program=("x",), devices=devices, knows_devices=True)
    finder = ModelFinder(memory=lambda: memory, abilities=lambda _: engine, gpus=tuple)

    def fetch(profile: Profile) -> Path:
        return fetch_sync(profile, tmp_path / "cache", lambda _: None, Cancellation())

    return ModelGetter(None, fetch, finder=finder)


def reference(text: str) -> HubReference:
    found = parse_reference(text)
    assert found is not None
    return found


def test_an_offer_says_what_fits_and_chooses_the_usual(hub: ScriptedHub, tmp_path: Path) -> None:
    offer = getter(tmp_path).offer(reference("org/m"))
    assert [(each.model.quantization, each.fits) for each in offer.choices] == [("Q4_K_M", "yes"), ("Q8_0", "yes")]
    assert offer.chosen.model.quantization == "Q4_K_M"
    assert getter(tmp_path).offer(reference("org/m:Q8_0")).chosen.model.quantization == "Q8_0"
    nothing = getter(tmp_path, memory=GIB).offer(reference("org/m"))
    assert {each.fits for each in nothing.choices} == {"no"}


def test_a_model_and_its_projector_become_a_profile(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.add("org/m", "mmproj-F16.gguf", write_projector(tmp_path / "p.gguf").read_bytes())
    subject, wanted = getter(tmp_path, gpu=24 * GIB), reference("hf.co/org/m:q4_k_m")
    got = subject.get_from_hub(subject.offer(wanted), wanted)
    assert got.name == "m-q4_k_m"
    assert got.path.read_bytes() == hub.files["org/m/m-Q4_K_M.gguf"]
    assert got.projector is not None and got.projector.name == "mmproj-F16.gguf"
    assert got.entry.model == "hf:org/m/m-Q4_K_M.gguf"
    assert (got.entry.context, got.entry.parallel, got.entry.gpu_layers) == (2048, 4, 5)
    assert got.entry.aliases == ("hf.co/org/m:Q4_K_M",)
    seen = len(hub.requests)
    subject.get_from_hub(subject.offer(wanted), wanted)
    assert not any(path.startswith("/cdn/") and wanted is None for _, path, _, wanted in hub.requests[seen:])


def test_a_model_and_its_draft_become_a_profile(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.add("org/m", "m-draft-Q8_0.gguf", write_draft(tmp_path / "d.gguf").read_bytes())
    subject, wanted = getter(tmp_path), reference("org/m:Q4_K_M")
    got = subject.get_from_hub(subject.offer(wanted), wanted)
    assert got.draft is not None and got.draft.name == "m-draft-Q8_0.gguf"
    assert got.entry.draft == str(got.draft)


def test_a_draft_with_another_vocabulary_is_not_used(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.add("org/m", "m-draft-Q8_0.gguf", write_draft(tmp_path / "d.gguf", vocabulary=90).read_bytes())
    subject, wanted = getter(tmp_path), reference("org/m:Q4_K_M")
    got = subject.get_from_hub(subject.offer(wanted), wanted)
    assert (got.draft, got.entry.draft) == (None, UNSET)


def test_a_model_in_parts_is_downloaded_whole(hub: ScriptedHub, tmp_path: Path) -> None:
    for part in (1, 2):
        hub.add(
            "org/big", f"big-Q8_0-0000{part}-of-00002.gguf", write_chat(tmp_path / f"{part}", str(part)).read_bytes()
        )
    subject, wanted = getter(tmp_path), reference("org/big")
    got = subject.get_from_hub(subject.offer(wanted), wanted, name="mine")
    assert got.name == "mine"
    assert sorted(path.name for path in got.path.parent.glob("*.gguf")) == [
        "big-Q8_0-00001-of-00002.gguf",
        "big-Q8_0-00002-of-00002.gguf",
    ]


def test_a_model_of_the_registry_brings_its_licence_and_parameters(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.add_registry_model(
        "library/qwen3", "8b", model=hub.files["org/m/m-Q4_K_M.gguf"], license=b"Apache", system=b"Be brief.",
        params=b'{"temperature": 0.6, "num_ctx": 1024}',
    )  # fmt: skip
    subject, wanted = getter(tmp_path), reference("qwen3:8b")
    got = subject.get_from_registry(subject.read_registry(wanted), wanted)
    assert (got.name, got.entry.context, got.entry.aliases) == ("qwen3:8b", 1024, UNSET)
    assert got.entry.sha256 and str(got.entry.model).endswith(f"sha256:{got.entry.sha256}")
    assert got.preset is not None
    assert (got.preset.system, got.preset.parameters, got.preset.license) == (
        "Be brief.",
        {"temperature": 0.6},
        ("Apache",),
    )
