"""The file of models that clients made: read, changed and taken into account, and never in anybody's way."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hostler.profiles.library import MAX_MODELS, Library, drop, put, read_library
from hostler.profiles.presets import Preset, PresetMessage, is_name
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.store import profiles_of
from hostler.profiles.yaml_config import DocumentError, parse

LUIGI = Preset(
    model="smol", system="You are\nLuigi: 'the' \"other\" $brother #1", parameters={"stop": ("a", "b"), "top_p": 0.5},
    messages=(PresetMessage(role="user", content="hi"),), license=("MIT",), made_at=1.5,
)  # fmt: skip


def test_what_is_put_in_comes_out(tmp_path: Path) -> None:
    file = tmp_path / "new" / "models.yaml"
    assert read_library(file) == (Library(), None)
    put(file, "luigi:v1", preset=LUIGI, profile=ProfileEntry(base="smol", context=4096, args=("--lora", "/x")))
    put(file, "copy", preset=Preset(model="smol"), profile=None)
    kept, _ = read_library(file)
    assert kept.presets == {"luigi:v1": LUIGI, "copy": Preset(model="smol")}
    assert kept.profiles["luigi:v1"].args == ("--lora", "/x")
    drop(file, "luigi:v1")
    drop(file, "nobody")
    assert read_library(file)[0] == Library(presets={"copy": Preset(model="smol")})
    drop(file, "copy")
    put(file, "copy", preset=Preset(model="smol"), profile=None)
    assert "copy" in read_library(file)[0]


def test_a_file_of_one_name_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    put(file, "m", preset=LUIGI, profile=ProfileEntry(base="smol", context=1))
    put(file, "m", preset=Preset(model="smol"), profile=None)
    assert read_library(file)[0] == Library(presets={"m": Preset(model="smol")})


def test_a_broken_file_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("presets: {m: {modle: x}}\n")
    with pytest.raises(DocumentError, match=r"models\.yaml:1: .*did you mean model"):
        put(file, "n", preset=LUIGI, profile=None)
    assert file.read_text() == "presets: {m: {modle: x}}\n"


def test_there_are_bounds(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    lines = [f"  m{number}: {{model: smol}}" for number in range(MAX_MODELS)]
    file.write_text("\n".join(["presets:", *lines, ""]))
    put(file, "m0", preset=LUIGI, profile=None)
    with pytest.raises(DocumentError, match="delete some"):
        put(file, "n", preset=LUIGI, profile=None)


def test_what_cannot_be_any_more_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    main = parse("profiles: {smol: {model: /m.gguf, aliases: [tiny]}}", "hostler.yaml", env={})
    made = parse("{}", "models.yaml", env={})
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
        profiles = profiles_of(main, own, made=(made, entries), env={})
    assert [(profile.name, profile.context) for profile in profiles] == [
        ("smol", 4096),
        ("wide", 8192),
        ("wider", 9000),
    ]
    assert profiles[0].model == "/m.gguf" and all(name in caplog.text for name in ("orphan", "of.orphan", "Tiny"))


@pytest.mark.parametrize("name", ["m", "Mario", "org/m", "host.x/org/m:v1", "_m", "0", "a" * 80])
def test_names_that_may_be_taken(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/..", "../a", "a/../b", "/a", "a/", "a//b", "a b", "-a", ".a", "a:", ":a", "a:b:c", "a" * 81,
             "a/b/c/d", "a\n", "a\0", "ä", "a..b", "<img>", "~", "$x", "a@b", "a\\b"],
)  # fmt: skip
def test_names_that_lead_elsewhere_or_nowhere(name: str) -> None:
    assert not is_name(name)


TEXT = st.text(max_size=40)


@settings(max_examples=60, deadline=None)
@given(system=TEXT, words=st.lists(st.text(min_size=1, max_size=9), max_size=3))
@example(system="\x85 \u2028\n ---\n...\n- a: b #c", words=["$$", "${env:HOME}", "\0", "null", "1", "~"])
def test_any_words_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, system: str, words: list[str]
) -> None:
    file = tmp_path_factory.mktemp("any") / "models.yaml"
    preset = Preset(model="smol", system=system, license=tuple(words), parameters={"stop": tuple(words)})
    put(file, "m", preset=preset, profile=None)
    put(file, "n", preset=preset, profile=None)
    assert read_library(file)[0].presets == {"m": preset, "n": preset}
