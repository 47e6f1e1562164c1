"""Ollama's store: manifests, blobs, parameters."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from fakes.model_folders import write_chat

from hostler.gateway.importing.ollama import import_ollama
from hostler.gateway.importing.report import Imported, ImportFailed
from hostler.profiles.gguf import read_facts

MANIFEST = "manifests/registry.ollama.ai/library/tiny/latest"


def blob(store: Path, content: bytes) -> str:
    """Stores a blob; returns its digest."""
    name = hashlib.sha256(content).hexdigest()
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    (store / "blobs" / f"sha256-{name}").write_bytes(content)
    return f"sha256:{name}"


def manifest(store: Path, place: str, **layers: str) -> None:
    path = store / place
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"mediaType": f"application/vnd.ollama.image.{kind}", "digest": name} for kind, name in layers.items()]
    path.write_text(json.dumps({"schemaVersion": 2, "layers": entries}))


def translate(store: Path) -> Imported:
    return import_ollama(store, facts_of=lambda path: read_facts(Path(path)))


def profile(store: Path, name: str = "tiny:latest") -> Any:
    return translate(store).sections["profiles"][name]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return blob(tmp_path, write_chat(tmp_path / "x.gguf").read_bytes())


def test_a_model_is_used_where_it_is(tmp_path: Path, model: str) -> None:
    manifest(tmp_path, MANIFEST, model=model)
    assert profile(tmp_path)["model"] == str(tmp_path / "blobs" / model.replace(":", "-"))


def test_parameters_and_the_system_prompt_are_rules_for_requests(tmp_path: Path, model: str) -> None:
    params = {"num_ctx": 2048, "temperature": 0.6, "stop": ["<end>"], "num_predict": 9, "num_gpu": 5, "tfs_z": 1}
    manifest(
        tmp_path,
        MANIFEST,
        model=model,
        params=blob(tmp_path, json.dumps(params).encode()),
        system=blob(tmp_path, b"Be brief."),
    )
    found = profile(tmp_path)
    assert found["context"] == 2048 and found["gpu_layers"] == 5
    assert found["request"] == {
        "default": {"temperature": 0.6, "stop": ["<end>"], "max_tokens": 9}, "system": "Be brief."
    }  # fmt: skip
    assert [note.key for note in translate(tmp_path).notes if note.kind == "missing"] == ["tiny:latest: params.tfs_z"]


def test_models_of_other_registries_keep_their_names(tmp_path: Path, model: str) -> None:
    manifest(tmp_path, "manifests/hf.co/org/repo/Q4_K_M", model=model)
    manifest(tmp_path, "manifests/registry.ollama.ai/someone/tiny/8b", model=model)
    assert set(translate(tmp_path).sections["profiles"]) == {"hf.co/org/repo:Q4_K_M", "someone/tiny:8b"}


def test_the_folder_above_is_taken_as_well(tmp_path: Path) -> None:
    store = tmp_path / "models"
    manifest(store, MANIFEST, model=blob(store, write_chat(tmp_path / "x.gguf").read_bytes()))
    assert profile(tmp_path)["model"].startswith(str(store))


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "sha256:" + "0" * 64])
def test_a_model_without_its_file_is_reported(tmp_path: Path, digest: str) -> None:
    manifest(tmp_path, MANIFEST, model=digest)
    imported = translate(tmp_path)
    assert "profiles" not in imported.sections
    assert {note.kind for note in imported.notes} == {"missing"}


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[]", b'{"layers": [{}]}'])
def test_a_broken_manifest_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / MANIFEST
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert "cannot be read" in str(translate(tmp_path).notes)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportFailed, match="is no store of Ollama"):
        translate(tmp_path)


def test_files_that_are_not_there_are_reported(tmp_path: Path, model: str) -> None:
    gone = f"sha256:{'0' * 64}"
    manifest(tmp_path, MANIFEST, model=model, adapter=gone, system=gone)
    imported = translate(tmp_path)
    assert "args" not in imported.sections["profiles"]["tiny:latest"]
    notes = {note.key: note.kind for note in imported.notes if note.key.endswith(("adapter", "system"))}
    assert notes == {"tiny:latest: adapter": "missing", "tiny:latest: system": "missing"}
    assert sum(note.key.endswith("system") for note in imported.notes) == 1


def test_examples_of_conversations_are_part_of_the_system_prompt(tmp_path: Path, model: str) -> None:
    messages = [{"role": "user", "content": "Is it wet?"}, {"role": "assistant", "content": "yes"}]
    layers = {"model": model, "messages": blob(tmp_path, json.dumps(messages).encode())}
    manifest(tmp_path, MANIFEST, **layers, system=blob(tmp_path, b"Be brief."))
    system = profile(tmp_path)["request"]["system"]
    assert system == "Be brief.\n\nAn example of a conversation:\nuser: Is it wet?\nassistant: yes"
    manifest(tmp_path, MANIFEST, **{**layers, "messages": blob(tmp_path, b'[{"content": 1}]')})
    assert "request" not in profile(tmp_path)
    assert any("messages" in note.key and "cannot be read" in note.text for note in translate(tmp_path).notes)
    manifest(tmp_path, MANIFEST, **{**layers, "messages": f"sha256:{'0' * 64}"})
    assert [note.kind for note in translate(tmp_path).notes if "messages" in note.key] == ["missing"]


def test_the_number_of_drafted_tokens_is_an_argument(tmp_path: Path, model: str) -> None:
    manifest(tmp_path, MANIFEST, model=model, params=blob(tmp_path, b'{"draft_num_predict": 4}'))
    assert profile(tmp_path)["args"] == ["--draft-max", "4"]


def test_all_that_the_documentation_of_modelfiles_names_is_taken_over(tmp_path: Path, model: str) -> None:
    params = {
        "num_ctx": 4096, "repeat_last_n": 64, "repeat_penalty": 1.1, "temperature": 0.7, "seed": 42, "stop": ["AI:"],
        "num_predict": 42, "draft_num_predict": 4, "top_k": 40, "top_p": 0.9, "min_p": 0.05,
    }  # fmt: skip
    texts = {"template": b"{{ .Prompt }}", "system": b"s", "license": b"l", "adapter": b"a"}
    layers = {kind: blob(tmp_path, text) for kind, text in texts.items()}
    layers["messages"] = blob(tmp_path, b'[{"role": "user", "content": "hi"}]')
    manifest(tmp_path, MANIFEST, model=model, params=blob(tmp_path, json.dumps(params).encode()), **layers)
    kinds = [note.kind for note in translate(tmp_path).notes]
    assert (kinds.count("taken"), kinds.count("changed"), len(kinds)) == (14, 3, 17)
