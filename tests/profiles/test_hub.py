"""What a hub has: searched, listed, and chosen from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.model_folders import write_chat
from fakes.scripted_hub import ScriptedHub, hub_environment, running_hub

from hostler.profiles.downloads import Cancellation
from hostler.profiles.hub import (
    HubRepository,
    choose,
    quantization_of,
    read_remote_facts,
    read_repository,
    search,
    usual,
)
from hostler.profiles.hub_reference import HubReference, parse_reference
from hostler.profiles.sources import SourceError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHub]:
    with running_hub() as scripted:
        for name, value in hub_environment(scripted, str(tmp_path / "huggingface")).items():
            monkeypatch.setenv(name, value)
        for name, size in (("m-Q4_K_M.gguf", 40), ("m-Q8_0.gguf", 80), ("m-UD-Q4_K_XL.gguf", 45), ("m-F16.gguf", 160)):
            scripted.add("org/m-GGUF", name, b"x" * size)
        for part in (1, 2):
            scripted.add("org/m-GGUF", f"BF16/m-BF16-0000{part}-of-00002.gguf", b"p" * 90)
        scripted.add("org/m-GGUF", "half-Q2_K-00001-of-00002.gguf", b"h")
        scripted.add("org/m-GGUF", "mmproj-F16.gguf", b"v")
        scripted.add("org/m-GGUF", "mmproj-Q8_0.gguf", b"w")
        scripted.add("org/m-GGUF", "README.md", b"r")
        yield scripted


def reference(text: str) -> HubReference:
    found = parse_reference(text)
    assert found is not None
    return found


def read(text: str = "org/m-GGUF") -> HubRepository:
    return read_repository(reference(text), Cancellation())


def test_repositories_are_found_by_words(hub: ScriptedHub) -> None:
    found = search("M-gguf", Cancellation())
    assert [(each.name, each.downloads) for each in found] == [("org/m-GGUF", 7)]
    assert search("nothing", Cancellation()) == []
    assert hub.paths()[0] == "/api/models?search=M-gguf&filter=gguf&sort=downloads&direction=-1&limit=20"


@pytest.mark.parametrize("has_tree", [True, False])
def test_a_repository_has_models_with_their_files_and_projectors(hub: ScriptedHub, has_tree: bool) -> None:
    hub.has_tree = has_tree
    found = read()
    assert [(each.quantization, each.size, len(each.files)) for each in found.models] == [
        ("Q4_K_M", 40, 1),
        ("UD-Q4_K_XL", 45, 1),
        ("Q8_0", 80, 1),
        ("F16", 160, 1),
        ("BF16", 180, 2),
    ]
    assert all(file.sha256 for model in found.models for file in model.files)
    projector = found.projector()
    assert projector is not None and projector.path == "mmproj-F16.gguf"
    assert found.source(found.models[-1].files[0]) == "hf:org/m-GGUF/BF16/m-BF16-00001-of-00002.gguf"


@pytest.mark.parametrize(
    ("text", "quantization"),
    [
        ("org/m-GGUF:q8_0", "Q8_0"),
        ("org/m-GGUF:Q4", "Q4_K_M"),
        ("org/m-GGUF:UD-Q4", "UD-Q4_K_XL"),
        ("hf:org/m-GGUF/m-F16.gguf", "F16"),
        ("hf:org/m-GGUF/BF16/m-BF16-00002-of-00002.gguf", "BF16"),
    ],
)
def test_a_tag_or_a_file_chooses(hub: ScriptedHub, text: str, quantization: str) -> None:
    chosen = choose(read(), reference(text))
    assert chosen is not None and chosen.quantization == quantization


def test_without_a_tag_the_usual_one_is_taken(hub: ScriptedHub) -> None:
    found = read()
    assert choose(found, reference("org/m-GGUF")) is None
    assert usual(found.models).quantization == "Q4_K_M"
    assert usual(found.models[2:]).quantization == "Q8_0"


def test_mistakes_name_what_there_is(hub: ScriptedHub) -> None:
    with pytest.raises(SourceError, match=r"org/m-GGUF has no Q3_K_S; it has: Q4_K_M, UD-Q4_K_XL, Q8_0, F16, BF16"):
        choose(read(), reference("org/m-GGUF:Q3_K_S"))
    with pytest.raises(SourceError, match=f"there is no repository org/other at {hub.url}"):
        read("org/other")
    hub.add("org/safe", "model.safetensors", b"s")
    with pytest.raises(SourceError, match="org/safe has no GGUF files"):
        read("org/safe")
    hub.add("org/eyes", "mmproj-f16.gguf", b"x")
    hub.add("org/parts", "m-00001-of-00002.gguf", b"x")
    with pytest.raises(SourceError, match=r"org/eyes has GGUF files, but no whole model.*mmproj-f16\.gguf"):
        read("org/eyes")
    with pytest.raises(SourceError, match=r"org/parts has GGUF files, but no whole model"):
        read("org/parts")
    hub.gated.add("org/m-GGUF")
    with pytest.raises(SourceError, match=r"org/m-GGUF: .* \(the model is gated: accept its terms on"):
        read()


def test_a_server_that_is_no_hub_is_named(hub: ScriptedHub) -> None:
    hub.refusals = [(200, {})]
    with pytest.raises(SourceError, match="answers, but not like the Hugging Face Hub"):
        search("m", Cancellation())


def test_the_start_of_a_file_says_how_it_runs(hub: ScriptedHub, tmp_path: Path) -> None:
    file = write_chat(tmp_path / "m.gguf", width=128)
    hub.add("org/real", "m-Q4_0.gguf", file.read_bytes())
    found = read("org/real")
    facts = read_remote_facts(found, found.models[0], Cancellation())
    assert (facts.architecture, facts.training_context, facts.embedding_length) == ("llama", 2048, 128)
    assert facts.kv_bytes_per_token > 0 and facts.bytes == file.stat().st_size
    assert [wanted for *_, wanted in hub.requests[-2:]] == ["bytes=0-524287"] * 2
    garbage = read_remote_facts(read(), read().models[0], Cancellation())
    assert (garbage.architecture, garbage.bytes) == ("", 40)


@pytest.mark.parametrize(
    ("path", "quantization"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("model-iq2_xxs.gguf", "iq2_xxs"),
        ("gpt-oss-20b-mxfp4.gguf", "mxfp4"),
        ("BF16/x-BF16-00001-of-00003.gguf", "BF16"),
        ("plain.gguf", ""),
    ],
)
def test_names_say_how_a_file_is_stored(path: str, quantization: str) -> None:
    assert quantization_of(path) == quantization


def test_an_error_does_not_show_the_credentials_of_a_mirror(hub: ScriptedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("://", "://user:secret@"))
    with pytest.raises(SourceError, match=r"there is no repository org/none at http://127\.0\.0\.1") as caught:
        read("org/none")
    assert "secret" not in str(caught.value)


def test_the_licence_is_what_the_hub_calls_it_and_is_not_needed(hub: ScriptedHub) -> None:
    hub.add("org/free", "m-Q8_0.gguf", b"x")
    assert read("org/free").license == ""
    hub.licenses["org/free"] = "apache-2.0"
    assert read("org/free").license == "apache-2.0"
    hub.has_tree = False
    assert read("org/free").license == "apache-2.0"


def test_small_models_that_draft_belong_to_the_larger_one(hub: ScriptedHub) -> None:
    sizes = {"M-Q4_K_M.gguf": 900, "M-MTP-Q4_K_M.gguf": 950, "draft/M-draft-Q4_0.gguf": 90, "mtp-M-Q8_0.gguf": 100}
    for path, size in sizes.items():
        hub.add("org/drafts", path, b"x" * size)
    found = read_repository(reference("org/drafts"), Cancellation())
    assert [each.files[0].path for each in found.models] == ["M-Q4_K_M.gguf", "M-MTP-Q4_K_M.gguf"]
    draft = found.draft(found.models[0])
    assert draft is not None and draft.path == "mtp-M-Q8_0.gguf"
    named = read_repository(reference("hf:org/drafts/draft/M-draft-Q4_0.gguf"), Cancellation())
    assert named.models[0].files[0].path == "draft/M-draft-Q4_0.gguf" and named.draft(named.models[0]) is None


def test_a_repository_of_drafts_has_models(hub: ScriptedHub) -> None:
    hub.add("org/only", "M-draft-Q8_0.gguf", b"x" * 90)
    found = read_repository(reference("org/only"), Cancellation())
    assert len(found.models) == 1 and not found.drafts
