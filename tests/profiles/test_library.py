"""The library of models that clients created."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hostler.profiles.library import MAX_MODELS, Library, delete_model, read_library, save_model
from hostler.profiles.presets import Preset, PresetMessage
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.store import load_profiles
from hostler.profiles.yaml_config import DocumentError, parse

LUIGI = Preset(
    model="smol", system="You are\nLuigi: 'the' \"other\" $brother #1", parameters={"stop": ("a", "b"), "top_p": 0.5},
    messages=(PresetMessage(role="user", content="hi"),), license=("MIT",), created_at=1.5,
)  # fmt: skip


def test_saved_models_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "models.yaml"
    assert read_library(file) == (Library(), None)
    save_model(file, "luigi:v1", preset=LUIGI, profile=ProfileEntry(base="smol", context=4096, args=("--lora", "/x")))
    save_model(file, "copy", preset=Preset(model="smol"), profile=None)
    kept, _ = read_library(file)
    assert kept.presets == {"luigi:v1": LUIGI, "copy": Preset(model="smol")}
    assert kept.profiles["luigi:v1"].args == ("--lora", "/x")
    delete_model(file, "luigi:v1")
    delete_model(file, "unknown")
    assert read_library(file)[0] == Library(presets={"copy": Preset(model="smol")})
    delete_model(file, "copy")
    save_model(file, "copy", preset=Preset(model="smol"), profile=None)
    assert "copy" in read_library(file)[0]


def test_saving_replaces_both_preset_and_profile(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    save_model(file, "m", preset=LUIGI, profile=ProfileEntry(base="smol", context=1))
    save_model(file, "m", preset=Preset(model="smol"), profile=None)
    assert read_library(file)[0] == Library(presets={"m": Preset(model="smol")})


def test_an_invalid_file_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("presets: {m: {modle: x}}\n")
    with pytest.raises(DocumentError, match=r"models\.yaml:1: .*did you mean model"):
        save_model(file, "n", preset=LUIGI, profile=None)
    assert file.read_text() == "presets: {m: {modle: x}}\n"


def test_the_number_of_models_is_limited(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    lines = [f"  m{number}: {{model: smol}}" for number in range(MAX_MODELS)]
    file.write_text("\n".join(["presets:", *lines, ""]))
    save_model(file, "m0", preset=LUIGI, profile=None)
    with pytest.raises(DocumentError, match="delete some"):
        save_model(file, "n", preset=LUIGI, profile=None)


def test_invalid_created_profiles_are_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    main = parse("profiles: {smol: {model: /m.gguf, aliases: [tiny]}}", "hostler.yaml", env={})
    created = parse("{}", "models.yaml", env={})
    entries = {
        "wide": ProfileEntry(base="smol", context=8192),
        "wider": ProfileEntry(base="wide", context=9000),
        "orphan": ProfileEntry(base="gone"),
        "of.orphan": ProfileEntry(base="orphan"),
        "Tiny": ProfileEntry(base="smol"),
        "smol": ProfileEntry(model="/other.gguf"),
    }
    own = {"smol": ProfileEntry(model="/m.gguf", aliases=("tiny",))}
    with caplog.at_level(logging.WARNING):
        profiles = load_profiles(main, own, created=(created, entries), env={})
    assert [(profile.name, profile.context) for profile in profiles] == [
        ("smol", 4096),
        ("wide", 8192),
        ("wider", 9000),
    ]
    assert profiles[0].model == "/m.gguf" and all(name in caplog.text for name in ("orphan", "of.orphan", "Tiny"))


TEXT = st.text(max_size=40)


@settings(max_examples=60, deadline=None)
@given(system=TEXT, words=st.lists(st.text(min_size=1, max_size=9), max_size=3))
@example(system="\x85 \u2028\n ---\n...\n- a: b #c", words=["$$", "${env:HOME}", "\0", "null", "1", "~"])
def test_any_text_survives_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, system: str, words: list[str]
) -> None:
    file = tmp_path_factory.mktemp("any") / "models.yaml"
    preset = Preset(model="smol", system=system, license=tuple(words), parameters={"stop": tuple(words)})
    save_model(file, "m", preset=preset, profile=None)
    save_model(file, "n", preset=preset, profile=None)
    assert read_library(file)[0].presets == {"m": preset, "n": preset}
