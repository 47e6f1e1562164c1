"""LM Studio's folder: models, and the settings of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.model_folders import write_chat, write_embeddings, write_parts, write_projector

from hostler.gateway.importing.lmstudio import import_lmstudio

PLACE = "vendor/Tiny-GGUF/Tiny-Q4_K_M.gguf"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """LM Studio's folder with a chat model that reads images."""
    file = tmp_path / "models" / PLACE
    file.parent.mkdir(parents=True)
    write_chat(file)
    write_projector(file.with_name("mmproj-Tiny-F16.gguf"))
    return tmp_path


def write_settings(home: Path, load: dict[str, Any], operation: dict[str, Any]) -> Path:
    path = home / ".internal/user-concrete-model-default-config" / f"{PLACE}.json"
    path.parent.mkdir(parents=True)
    fields = {
        kind: {"fields": [{"key": key, "value": value} for key, value in given.items()]}
        for kind, given in (("load", load), ("operation", operation))
    }
    path.write_text(json.dumps(fields, indent=1))
    return path


def profile(home: Path, name: str = "tiny-q4_k_m") -> Any:
    return import_lmstudio(home).sections["profiles"][name]


def test_models_are_used_where_they_are(home: Path) -> None:
    folder = home / "models/vendor/Tiny-GGUF"
    assert profile(home) == {
        "model": str(folder / "Tiny-Q4_K_M.gguf"), "mmproj": str(folder / "mmproj-Tiny-F16.gguf")
    }  # fmt: skip


def test_a_model_in_parts_has_the_name_of_the_whole(home: Path) -> None:
    write_parts(home / "models/vendor/Big-GGUF", "Big-Q4_K_M", 2)
    assert profile(home, "big-q4_k_m")["model"].endswith("Big-Q4_K_M-00001-of-00002.gguf")


def test_a_model_for_embeddings_is_one(home: Path) -> None:
    write_embeddings(home / "models/vendor/Embed.gguf")
    assert profile(home, "embed")["embeddings"] is True


def test_settings_of_a_model_are_those_of_its_profile(home: Path) -> None:
    write_settings(
        home,
        {
            "llm.load.contextLength": 8192, "llm.load.llama.acceleration.offloadRatio": 1,
            "llm.load.llama.flashAttention": True, "llm.load.numParallelSessions": 2,
            "llm.load.llama.kCacheQuantizationType": {"checked": True, "value": "q8_0"},
            "llm.load.seed": {"checked": False, "value": 1},
        },
        {"llm.prediction.temperature": 0.3, "llm.prediction.systemPrompt": "Be brief.", "llm.prediction.other": 1},
    )  # fmt: skip
    found = profile(home)
    assert (found["context"], found["gpu_layers"], found["parallel"]) == (8192, "all", 2)
    assert found["args"] == ["--flash-attn", "on", "--cache-type-k", "q8_0"]
    assert found["request"] == {"default": {"temperature": 0.3}, "system": "Be brief."}


def test_notes_name_the_line_of_the_settings(home: Path) -> None:
    path = write_settings(home, {}, {"llm.prediction.other": 1})
    (note,) = [note for note in import_lmstudio(home).notes if note.kind == "missing"]
    assert note.file == str(path) and path.read_text().splitlines()[(note.line or 0) - 1].strip().startswith('"key"')


@pytest.mark.parametrize("content", [b"\xff", b"{", b'{"load": 1}', b'{"load": {"fields": [1]}}', b"\0"])
def test_broken_settings_are_reported(home: Path, content: bytes) -> None:
    write_settings(home, {}, {}).write_bytes(content)
    imported = import_lmstudio(home)
    assert "tiny-q4_k_m" in imported.sections["profiles"]
    assert [note.key for note in imported.notes if note.kind == "missing"] == ["settings"]


def test_the_folder_for_downloads_may_be_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "far").mkdir()
    write_chat(tmp_path / "far" / "a.gguf")
    (tmp_path / "app" / "settings.json").write_text(json.dumps({"downloadsFolder": str(tmp_path / "far")}))
    assert profile(tmp_path / "app", "a")["model"] == str(tmp_path / "far" / "a.gguf")
