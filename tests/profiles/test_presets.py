"""Presets: names of created models, and inheritance."""

from __future__ import annotations

import msgspec
import pytest

from hostler.profiles.presets import Preset, PresetMessage, inherit_preset, is_model_name


@pytest.mark.parametrize("name", ["m", "Mario", "org/m", "host.x/org/m:v1", "_m", "0", "a" * 80])
def test_accepts_model_names(name: str) -> None:
    assert is_model_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/..", "../a", "a/../b", "/a", "a/", "a//b", "a b", "-a", ".a", "a:", ":a", "a:b:c", "a" * 81,
             "a/b/c/d", "a\n", "a\0", "ä", "a..b", "<img>", "~", "$x", "a@b", "a\\b"],
)  # fmt: skip
def test_rejects_unsafe_model_names(name: str) -> None:
    assert not is_model_name(name)


def test_a_preset_inherits_what_it_leaves_out() -> None:
    base = Preset(
        model="smol",
        system="be brief",
        parameters={"top_k": 1, "temperature": 0.5},
        messages=(PresetMessage(role="user", content="hi"),),
        license=("MIT",),
    )
    created = inherit_preset(Preset(model="mario", parameters={"temperature": 0.1}, license=("BSD",)), base)
    assert created == msgspec.structs.replace(base, parameters={"top_k": 1, "temperature": 0.1}, license=("BSD",))
    assert inherit_preset(created, None) is created


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        (Preset(model="m", license=("MIT",)), False),
        (Preset(model="m", system="be brief"), True),
        (Preset(model="m", parameters={"top_k": 1}), True),
        (Preset(model="m", messages=(PresetMessage(role="user"),)), True),
    ],
)
def test_only_some_presets_change_requests(preset: Preset, changes: bool) -> None:
    assert preset.changes_requests is changes


def test_the_time_of_creation_keeps_its_name_in_files() -> None:
    assert msgspec.json.encode(Preset(model="m", created_at=1.5)).endswith(b'"made_at":1.5}')
