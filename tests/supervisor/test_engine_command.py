"""Profiles as command lines."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import SupervisorError
from hostler.supervisor.embedded.arguments import parse
from hostler.supervisor.engine_command import EngineCommand, build_command, engine_program
from hostler.supervisor.llama_arguments import argument_value


def make(
    inherited: Mapping[str, str] | None = None, settings: dict[str, Any] | None = None,
    visible: Mapping[str, str] | None = None, **fields: Any,
) -> EngineCommand:  # fmt: skip
    return build_command(
        Profile(name="m", model="ignored", **fields), SupervisorSettings(**{"engine": sys.executable} | (settings or {})),
        file=Path("/models/m.gguf"), host="127.0.0.1", port=8100, key="k3y", inherited=inherited or {},
        visible=visible,
    )  # fmt: skip


def value_of(command: EngineCommand, name: str) -> str:
    return command.arguments[command.arguments.index(name) + 1]


def test_the_context_of_a_profile_is_what_each_request_gets() -> None:
    command = make(context=2048, parallel=3)
    assert value_of(command, "-c") == "6144"
    assert value_of(command, "-np") == "3"
    assert (command.context, command.parallel) == (2048, 3)


def test_the_key_is_in_the_environment_and_nowhere_else() -> None:
    command = make()
    assert command.environment["LLAMA_API_KEY"] == "k3y"
    assert "k3y" not in " ".join(command.arguments)


def test_a_profiles_own_arguments_come_last_and_win() -> None:
    values = parse(make(args=("-b", "64", "-fa", "on"), batch=512).arguments[1:])
    assert values["n_batch"] == 64


@pytest.mark.parametrize(
    ("fields", "settings", "words"),
    [
        ({"threads": 2}, {}, ("-t", "2")),
        ({"gpu_layers": "all"}, {}, ("-ngl", "all")),
        ({"embeddings": True}, {}, ("--embeddings",)),
        ({"embeddings": True}, {}, ("--pooling", "mean")),
        ({"embeddings": True, "context": 8192}, {}, ("-ub", "2048")),
        ({"embeddings": True, "context": 1024}, {}, ("-ub", "1024")),
        ({"embeddings": True, "batch": 4096}, {}, ("-ub", "4096")),
        ({"cache_ram_mib": 100}, {}, ("--cache-ram", "100")),
        ({}, {"slots_dir": "/tmp"}, ("--slot-save-path", "/tmp")),
    ],
)
def test_a_field_becomes_its_argument(fields: dict[str, Any], settings: dict[str, Any], words: tuple[str, ...]) -> None:
    arguments = make(settings=settings, **fields).arguments
    start = arguments.index(words[0])
    assert arguments[start : start + len(words)] == words
    assert words[0] not in make().arguments or fields.get("cache_ram_mib")


def test_the_pooling_type_of_a_model_file_is_used() -> None:
    facts = ModelFacts(architecture="bert", metadata={"bert.pooling_type": 2})
    command = build_command(
        Profile(name="m", model="ignored", embeddings=True), SupervisorSettings(engine=sys.executable), facts=facts,
        file=Path("/models/m.gguf"), host="127.0.0.1", port=8100, key="k3y", inherited={},
    )  # fmt: skip
    assert "--pooling" not in command.arguments


@pytest.mark.parametrize(
    ("facts", "slots_dir", "fields", "expected"),
    [
        (ModelFacts(sliding_window=512), "/slots", {}, "8"),
        (ModelFacts(recurrent=True), "/slots", {}, "8"),
        (ModelFacts(recurrent=True), "/slots", {"args": ("-ctxcp", "3")}, "3"),
        (ModelFacts(recurrent=True), "/slots", {"env": {"LLAMA_ARG_CTX_CHECKPOINTS": "3"}}, None),
        (ModelFacts(recurrent=True), "/slots", {"engine": f"{sys.executable} -ctxcp 3"}, "3"),
        (ModelFacts(recurrent=True), None, {}, None),
        (ModelFacts(), "/slots", {}, None),
        (None, "/slots", {}, None),
    ],
)
def test_engines_of_kept_conversations_make_few_checkpoints_unless_the_profile_says_otherwise(
    facts: ModelFacts | None, slots_dir: str | None, fields: dict[str, Any], expected: str | None
) -> None:
    command = build_command(
        Profile(name="m", model="ignored", **fields), SupervisorSettings(engine=sys.executable, slots_dir=slots_dir),
        facts=facts, file=Path("/models/m.gguf"), host="127.0.0.1", port=8100, key="k3y", inherited={},
    )  # fmt: skip
    assert argument_value(command.arguments, "-ctxcp", "--ctx-checkpoints") == expected


def test_a_profile_may_set_the_pooling_type_itself() -> None:
    arguments = make(embeddings=True, args=("--pooling", "none", "-ub", "64")).arguments
    assert arguments[-4:] == ("--pooling", "none", "-ub", "64")


def test_the_embedded_engine_knows_every_argument_that_is_passed() -> None:
    full = make(threads=1, gpu_layers="auto", embeddings=True, settings={"slots_dir": "/tmp"})
    assert parse(full.arguments[1:])["port"] == 8100


def test_our_token_is_not_inherited_whatever_its_variable_is_called() -> None:
    inherited = {"HOUSE": "s3cret", "HOME": "/h"}
    assert "HOUSE" not in make(inherited, settings={"token": "s3cret"}).environment
    assert make(inherited, settings={"token": "another"}).environment["HOUSE"] == "s3cret"


def test_our_own_secrets_are_not_inherited_and_a_profiles_environment_is_set() -> None:
    inherited = {"HOSTLER_SUPERVISOR_TOKEN": "t", "OPENROUTER_API_KEY": "o", "LLAMA_ARG_CTX_SIZE": "1", "HOME": "/h"}
    environment = make(inherited, env={"OMP_NUM_THREADS": "1"}).environment
    assert environment["HOME"] == "/h"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert not {"HOSTLER_SUPERVISOR_TOKEN", "OPENROUTER_API_KEY", "LLAMA_ARG_CTX_SIZE"} & set(environment)


def test_an_engine_may_be_a_command_line() -> None:
    assert engine_program(f"{sys.executable} -I 'my engine.py'") == (sys.executable, "-I", "my engine.py")


def test_llama_server_on_the_path_is_taken_first(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert engine_program(None, path=str(tmp_path)) == (str(program),)


def test_a_missing_engine_is_refused_with_the_way_to_get_one() -> None:
    with pytest.raises(SupervisorError) as refused:
        engine_program("/nowhere/llama-server")
    assert refused.value.failure.kind == "engine_missing"
    assert "pip install 'hostler[embedded]'" in refused.value.failure.message


def test_a_profiles_environment_wins_over_the_choice_of_gpus() -> None:
    visible = {"CUDA_VISIBLE_DEVICES": "GPU-a", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    environment = make({"CUDA_VISIBLE_DEVICES": "7"}, visible=visible).environment
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    environment = make({}, visible=visible, env={"CUDA_VISIBLE_DEVICES": "1"}).environment
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["CUDA_DEVICE_ORDER"]) == ("1", "PCI_BUS_ID")
