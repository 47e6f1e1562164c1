"""Which saved slots fit which engine."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec.structs import replace

from hostler.profiles.schema import Profile
from hostler.supervisor.slot_key import slot_key

PROFILE = Profile(name="alpha", model="/m.gguf", parallel=2)


def test_a_key_changes_with_everything_that_slots_depend_on(tmp_path: Path) -> None:
    file, adapter = tmp_path / "m.gguf", tmp_path / "a.gguf"
    file.write_bytes(b"weights")
    adapter.write_bytes(b"adapter")
    profile = replace(PROFILE, args=("--lora-scaled", f"{adapter}:0.5"))
    keys = {slot_key(profile, file, "b1"), slot_key(profile, file, "b2")}
    for change in (
        {"parallel": 1},
        {"name": "beta"},
        {"args": (*profile.args, "-ctk", "q8_0")},
        {"args": (*profile.args, "-fa", "on")},
        {"args": (*profile.args, "-kvu")},
        {"args": (*profile.args, "--rope-scale", "2")},
        {"env": {"LLAMA_ARG_CACHE_TYPE_K": "q8_0"}},
    ):
        keys.add(slot_key(replace(profile, **change), file, "b1"))
    adapter.write_bytes(b"adaptor")
    os.utime(adapter, ns=(1, 1))
    keys.add(slot_key(profile, file, "b1"))
    file.write_bytes(b"wights!")
    os.utime(file, ns=(1, 1))
    keys.add(slot_key(profile, file, "b1"))
    assert len(keys) == 11


def test_a_key_stays_when_only_speed_changes(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"weights")
    faster = replace(PROFILE, args=("-t", "8", "-ngl", "99"), context=9999, batch=2048, ttl_s=3.0, description="x")
    assert slot_key(PROFILE, file, "b") == slot_key(faster, file, "b")
