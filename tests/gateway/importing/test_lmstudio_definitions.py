"""LM Studio's definitions of models, `model.yaml`: which file one stands for, and what it sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.model_folders import write_chat

from hostler.gateway.importing.lmstudio import import_lmstudio
from hostler.gateway.importing.report import Imported

DEFINITION = """\
# A model with settings of its own
model: maker/tiny
base:
  - key: vendor/tiny-gguf
    sources:
      - {type: huggingface, user: vendor, repo: Tiny-GGUF}
  - key: vendor/tiny-mlx-4bit
metadataOverrides:
  domain: llm
  contextLengths: [40960]
config:
  operation:
    fields:
      - key: llm.prediction.topKSampling
        value: 20
      - key: llm.prediction.minPSampling
        value: {checked: true, value: 0}
      - key: llm.prediction.promptTemplate
        value: {type: jinja}
  load:
    fields:
      - {key: llm.load.contextLength, value: 4096}
customFields:
  - key: enableThinking
    type: boolean
    defaultValue: true
    effects:
      - {type: setJinjaVariable, variable: enable_thinking}
  - key: mood
    type: string
    effects: [{type: sing}]
suggestions:
  - {message: Warmer}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """LM Studio's folder with a model in two quantizations."""
    for name in ("Tiny-Q4_K_M", "Tiny-Q8_0"):
        file = tmp_path / "models/vendor/Tiny-GGUF" / f"{name}.gguf"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_chat(file)
    return tmp_path


def define(home: Path, text: str, place: str = "maker/tiny") -> Path:
    file = home / "hub/models" / place / "model.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def save(home: Path, name: str, **fields: Any) -> None:
    file = home / ".internal/user-concrete-model-default-config" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"operation": {"fields": [{"key": key, "value": fields[key]} for key in fields]}}))


def profiles(home: Path) -> Any:
    return import_lmstudio(home).sections["profiles"]


def notes(imported: Imported, kind: str, file: Path) -> dict[str, int | None]:
    return {note.key: note.line for note in imported.notes if note.kind == kind and note.file == str(file)}


def test_a_definition_names_a_file_and_brings_settings(home: Path) -> None:
    define(home, DEFINITION)
    found = profiles(home)
    assert found["tiny-q4_k_m"] == {
        "model": str(home / "models/vendor/Tiny-GGUF/Tiny-Q4_K_M.gguf"),
        "aliases": ["maker/tiny"],
        "context": 4096,
        "request": {"default": {"top_k": 20, "min_p": 0, "chat_template_kwargs.enable_thinking": True}},
    }
    assert found["tiny-q8_0"] == {"model": str(home / "models/vendor/Tiny-GGUF/Tiny-Q8_0.gguf")}


def test_every_key_of_a_definition_is_noted_with_its_line(home: Path) -> None:
    file = define(home, DEFINITION)
    imported = import_lmstudio(home)
    assert notes(imported, "taken", file) == {
        "model": 2,
        "llm.prediction.topKSampling": 14, "llm.prediction.minPSampling": 16,
        "llm.load.contextLength": 22, "customFields.enableThinking": 24,
    }  # fmt: skip
    assert notes(imported, "changed", file) == {"base": 3}
    assert notes(imported, "meaningless", file) == {"metadataOverrides": 8}
    assert notes(imported, "missing", file) == {
        "llm.prediction.promptTemplate": 18, "customFields.mood": 29, "suggestions": 32,
    }  # fmt: skip


def test_settings_saved_for_a_defined_model_come_before_its_own(home: Path) -> None:
    define(home, DEFINITION)
    save(
        home,
        "maker/tiny",
        **{"llm.prediction.topKSampling": 7, "ext.virtualModel.customField.maker.tiny.enableThinking": False},
    )
    default = profiles(home)["tiny-q4_k_m"]["request"]["default"]
    assert (default["top_k"], default["chat_template_kwargs.enable_thinking"]) == (7, False)


@pytest.mark.parametrize("base", ["vendor/tiny-gguf/tiny-q8_0.gguf", "[vendor/gone, vendor/Tiny-GGUF/Tiny-Q8_0.gguf]"])
def test_a_base_may_be_one_file(home: Path, base: str) -> None:
    define(home, f"model: maker/tiny\nbase: {base}\n")
    assert profiles(home)["tiny-q8_0"]["aliases"] == ["maker/tiny"]


def test_a_definition_may_build_upon_another_one(home: Path) -> None:
    define(home, DEFINITION)
    more = "config: {operation: {fields: [{key: llm.prediction.topKSampling, value: 3}]}}\n"
    define(home, f"model: me/mine\nbase: maker/tiny\n{more}", "me/mine")
    mine = profiles(home)["me/mine"]
    assert (mine["context"], mine["request"]["default"]["top_k"]) == (4096, 3)


@pytest.mark.parametrize(
    "text",
    ["model: a/b\nbase: a/b\n", "model: a/b\nbase: [maker/tiny, a/b]\n", "model: a/b\n", "model: a/b\nbase: {x: 1}\n"],
)
def test_a_definition_without_a_file_is_said(home: Path, text: str) -> None:
    define(home, "model: maker/tiny\nbase: a/b\n")
    file = define(home, text, "a/b")
    assert "base" in notes(import_lmstudio(home), "missing", file)


@pytest.mark.parametrize(
    "text",
    [
        "", "- a\n", "model: 3\n", "model: ../../x\n", "model: /etc/passwd\n", "model: a\nbase: b\n", "a: &x [*x]\n",
        "model: [\n", "\tmodel: a/b\n", "model: a/b\nmodel: c/d\n", "a: \0\n",
    ],
)  # fmt: skip
def test_a_definition_that_cannot_be_read_is_said(home: Path, text: str) -> None:
    file = define(home, text)
    imported = import_lmstudio(home)
    assert list(notes(imported, "missing", file)) == ["model.yaml"]
    assert set(imported.sections["profiles"]) == {"tiny-q4_k_m", "tiny-q8_0"}


@pytest.mark.parametrize(
    "section",
    [
        "config: 3",
        "config: {load: 3}",
        "config: {load: {fields: {}}}",
        "customFields: x",
        "customFields: [{key: a, effects: 1}]",
    ],
)
def test_a_section_of_another_kind_is_said(home: Path, section: str) -> None:
    file = define(home, f"model: maker/tiny\nbase: vendor/tiny-gguf\n{section}\n")
    imported = import_lmstudio(home)
    assert "model.yaml" in notes(imported, "missing", file)
    assert imported.sections["profiles"]["tiny-q4_k_m"]["aliases"] == ["maker/tiny"]


@pytest.mark.parametrize(
    "section",
    [
        "config: {load: {fields: [3]}}", "config: {load: {fields: [{value: 3}]}}", "config: {other: 1}", "other: 1",
        "customFields: [3]", "customFields: [{key: a, effects: [3]}]",
        "config: {load: {fields: [{key: llm.load.contextLength, value: -1}]}}",
        "config: {operation: {fields: [{key: llm.prediction.temperature, value: .nan}]}}",
        "config: {operation: {fields: [{key: llm.prediction.temperature, value: true}]}}",
        "config: {operation: {fields: [{key: ext.virtualModel.customField.a.b.gone, value: 1}]}}",
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_is_said(home: Path, section: str) -> None:
    file = define(home, f"model: maker/tiny\nbase: vendor/tiny-gguf/tiny-q4_k_m.gguf\n{section}\n")
    imported = import_lmstudio(home)
    assert list(notes(imported, "missing", file).values()) == [3]
    assert imported.sections["profiles"]["tiny-q4_k_m"].keys() == {"model", "aliases"}
