"""Which saved slots fit which engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.slot_key import program_identity, slot_key, unsupported_reason

PLAIN = ModelFacts(architecture="llama")
WINDOW = ModelFacts(architecture="gemma3", sliding_window=512)
RECURRENT = ModelFacts(architecture="mamba2", recurrent=True)
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


@pytest.mark.parametrize(("metadata", "keys"), [({}, 1), ({"phi3.rope.scaling.original_context_length": 4096}, 3)])
def test_a_key_changes_where_the_context_changes_how_keys_are_turned(
    tmp_path: Path, metadata: dict[str, Any], keys: int
) -> None:
    file, facts = tmp_path / "m.gguf", ModelFacts(architecture="phi3", metadata=metadata)
    file.write_bytes(b"weights")
    contexts = (1024, 2048, 2049, 4096, 4097, 8192)
    found = [slot_key(replace(PROFILE, context=context), file, "b", facts) for context in contexts]
    assert len(set(found)) == keys
    assert found[0] == found[1] and found[2] == found[3] and found[4] == found[5]


def test_a_key_stays_when_only_speed_changes(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"weights")
    faster = replace(PROFILE, args=("-t", "8", "-ngl", "99"), context=9999, batch=2048, ttl_s=3.0, description="x")
    assert slot_key(PROFILE, file, "b") == slot_key(faster, file, "b")


@pytest.mark.parametrize(
    ("change", "facts", "reason"),
    [
        ({}, PLAIN, ""),
        ({}, WINDOW, ""),
        ({}, RECURRENT, ""),
        ({}, None, "no readable header"),
        ({"embeddings": True}, PLAIN, "does not generate text"),
        ({"args": ("--reranking",)}, PLAIN, "does not generate text"),
        ({"args": ("--swa-full",)}, WINDOW, "--swa-full"),
        ({"args": ("--swa_full",)}, WINDOW, "--swa-full"),
        ({"engine": "llama-server --swa-full"}, WINDOW, "--swa-full"),
        ({"engine": "env LLAMA_ARG_SWA_FULL=1 llama-server"}, WINDOW, "--swa-full"),
        ({"env": {"LLAMA_ARG_SWA_FULL": "true"}}, WINDOW, "--swa-full"),
        ({"env": {"LLAMA_ARG_SWA_FULL": "0"}}, WINDOW, ""),
        ({"args": ("--ctx-checkpoints", "0")}, RECURRENT, "--ctx-checkpoints"),
        ({"args": ("--swa-checkpoints", "0")}, WINDOW, "--ctx-checkpoints"),
        ({"env": {"LLAMA_ARG_CTX_CHECKPOINTS": "0"}}, WINDOW, "--ctx-checkpoints"),
        ({"args": ("--ctx-checkpoints", "4")}, WINDOW, ""),
        ({"args": ("--ctx-checkpoints", "0")}, PLAIN, ""),
        ({"args": ("-md", "/draft.gguf")}, PLAIN, ""),
        ({"draft": "/draft.gguf"}, PLAIN, ""),
        ({"draft": "/GLM-MTP.gguf"}, PLAIN, ""),
        ({"args": ("--spec-draft-model", "/x/EAGLE3.gguf")}, PLAIN, ""),
        ({"args": ("--spec-type", "draft-mtp")}, RECURRENT, ""),
        ({"args": ("--spec-type", "draft-mtp")}, PLAIN, ""),
        ({"args": ("--spec-type", "ngram-cache")}, PLAIN, ""),
        ({"args": ("--spec-type", "ngram-mod,draft-simple")}, PLAIN, ""),
        ({"args": ("--spec-type", "ngram-mod,draft-dflash")}, PLAIN, "draft-dflash"),
        ({"args": ("--spec-type", "draft-dflash")}, RECURRENT, ""),
        ({"args": ("-md", "/draft.gguf", "--dspark")}, PLAIN, "--dspark"),
        ({"args": ("--spec-type", "none")}, PLAIN, ""),
        ({"env": {"LLAMA_ARG_SPEC_TYPE": "ngram-simple,ngram-map-k"}}, PLAIN, ""),
        ({"env": {"LLAMA_ARG_SPEC_TYPE": "draft-eagle3"}}, PLAIN, ""),
        ({"env": {"LLAMA_ARG_SPEC_TYPE": "draft-dflash"}}, PLAIN, "draft-dflash"),
        ({"env": {"LLAMA_ARG_SPEC_DRAFT_MODEL": "/draft.gguf"}}, PLAIN, ""),
    ],
)
def test_profiles_whose_slots_cannot_be_kept_say_why(
    change: dict[str, Any], facts: ModelFacts | None, reason: str
) -> None:
    found = unsupported_reason(replace(PROFILE, **change), facts)
    assert reason in found
    assert bool(found) == bool(reason)


def test_engines_are_told_apart_by_their_program(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_bytes(b"#!/bin/sh\n")
    program.chmod(0o755)
    first = program_identity(str(program))
    program.write_bytes(b"#!/bin/sh\n\n")
    assert len({first, program_identity(f"{program} --flag"), program_identity("embedded")}) == 3
