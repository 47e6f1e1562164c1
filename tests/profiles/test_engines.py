"""Engines as written in a file: inheritance, macros, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.profiles.engine_presets import PRESETS
from hostler.profiles.engines import (
    Engine,
    EngineEntry,
    EngineTable,
    InvalidEngine,
    ReadyRules,
    SleepRules,
    StopRules,
    as_capabilities,
    resolve_engines,
)

TOOL = EngineEntry(command="tool --port ${port}")


def resolved(macros: dict[str, Any] | None = None, **entries: EngineEntry) -> EngineTable:
    errors: list[InvalidEngine] = []
    table = resolve_engines(entries, PRESETS, macros or {}, errors=errors)
    for error in errors:
        raise error
    return table


def found(name: str, table: EngineTable) -> Engine:
    engine = table.find(name)
    assert engine is not None
    return engine


def test_a_command_may_be_one_text_split_as_a_shell_would() -> None:
    engine = found("tool", resolved(tool=EngineEntry(command="tool --port ${port} --title 'two words'")))
    assert engine.command == ("tool", "--port", "${port}", "--title", "two words")


def test_ready_may_be_a_path() -> None:
    engine = found("tool", resolved(tool=EngineEntry(command="tool ${port}", ready="/ok")))
    assert engine.ready == ReadyRules(path="/ok")


def test_an_engine_inherits_from_its_base_and_merges_macros_and_environment() -> None:
    base = EngineEntry(command="tool ${port} ${image}", macros={"image": "old", "other": "x"}, env={"A": "1", "B": "2"})
    engine = found("mine", resolved(tool=base, mine=EngineEntry(base="tool", macros={"image": "new"}, env={"B": "3"})))
    assert engine.command == ("tool", "${port}", "new")
    assert engine.env == {"A": "1", "B": "3"}


def test_an_entry_of_a_presets_name_changes_the_preset() -> None:
    engine = found("vllm-docker", resolved(**{"vllm-docker": EngineEntry(macros={"image": "my/vllm:1"})}))
    assert "my/vllm:1" in engine.command
    assert engine.listens == "anywhere"


def test_an_entry_of_a_presets_name_with_a_command_is_another_engine() -> None:
    engine = found("vllm", resolved(vllm=TOOL))
    assert engine == Engine(name="vllm", command=("tool", "--port", "${port}"))


def test_another_llama_server_gets_the_arguments_of_llama_server() -> None:
    table = resolved(ik=EngineEntry(base="llama-server", command="/opt/ik/llama-server --mlock"))
    assert found("ik", table).llama_server
    whole = resolved(ik=EngineEntry(base="llama-server", command="/opt/ik/llama-server --port ${port} -m ${model}"))
    assert not found("ik", whole).llama_server


def test_the_macros_of_all_engines_and_of_one_are_those_of_its_profiles() -> None:
    table = resolved({"models": "/srv"}, tool=EngineEntry(command="tool ${port}", macros={"own": ("a", "b")}))
    assert table.macros_of("tool") == {"models": "/srv", "own": ("a", "b")}
    assert table.macros_of(None) == {"models": "/srv"}


def test_an_engine_that_names_no_model_needs_none() -> None:
    assert not found("tool", resolved(tool=TOOL)).needs_model
    assert found("vllm", resolved()).needs_model


@pytest.mark.parametrize(
    ("entry", "path", "message"),
    [
        (EngineEntry(), ("engines", "tool", "command"), "is missing"),
        (EngineEntry(command="tool"), ("engines", "tool", "command"), "must pass on ${port}"),
        (EngineEntry(command="tool '${port}"), ("engines", "tool", "command"), "No closing quotation"),
        (EngineEntry(command="tool ${prot}"), ("engines", "tool", "command"), "${prot} is neither a macro nor"),
        (EngineEntry(base="nothing"), ("engines", "tool", "base"), "unknown engine nothing; engines are: "),
        (EngineEntry(base="tool"), ("engines", "tool", "base"), "unknown engine tool"),
        (EngineEntry(command="t ${port}", ready="health"), ("engines", "tool", "ready"), "must start with a slash"),
        (
            EngineEntry(command="t ${port}", ready=ReadyRules()),
            ("engines", "tool", "ready"),
            "needs a path, log or port",
        ),
        (
            EngineEntry(command="t ${port}", ready=ReadyRules(log="(")),
            ("engines", "tool", "ready"),
            "regular expression",
        ),
        (
            EngineEntry(command="t ${port}", ready=ReadyRules(path="/x", status=20)),
            ("engines", "tool", "ready"),
            "20 is not an HTTP status",
        ),
        (EngineEntry(command="t ${port}", prefix="/v1/"), ("engines", "tool", "prefix"), "must not end with a slash"),
        (EngineEntry(command="t ${port}", watchdog_s=-1.0), ("engines", "tool", "watchdog_s"), "at least 0"),
        (
            EngineEntry(command="t ${port}", stop=StopRules(command="kill ${pid}")),
            ("engines", "tool", "stop"),
            "${pid} is neither",
        ),
        (EngineEntry(command="t ${port}", env={"A": "${b}"}), ("engines", "tool", "env"), "${b} is neither"),
    ],
)
def test_a_mistake_is_reported_at_its_key(entry: EngineEntry, path: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidEngine) as refused:
        resolved(tool=entry)
    assert refused.value.path == path
    assert message in refused.value.message


def test_bases_that_inherit_from_each_other_are_refused() -> None:
    with pytest.raises(InvalidEngine, match="circular"):
        resolved(a=EngineEntry(base="b"), b=EngineEntry(base="a"))


def test_a_macro_may_not_have_the_name_of_a_variable() -> None:
    with pytest.raises(InvalidEngine) as refused:
        resolved({"port": "1"})
    assert refused.value.path == ("macros", "port")


def test_services_are_the_capabilities_of_model_files() -> None:
    assert as_capabilities(Engine(name="a", serves=("transcriptions",))) == ("transcriptions",)
    assert as_capabilities(Engine(name="a", serves=("chat", "embeddings"), capabilities=("tools",))) == (
        "completion", "embedding", "tools",
    )  # fmt: skip
    assert as_capabilities(Engine(name="a", capabilities=("vision",))) == ("completion", "vision")


@pytest.mark.parametrize("rules", [SleepRules(path="sleep"), SleepRules(wake="wake up")], ids=str)
def test_the_paths_of_sleep_are_paths(rules: SleepRules) -> None:
    errors: list[InvalidEngine] = []
    entry = EngineEntry(command=TOOL.command, sleep=rules)
    assert "tool" not in resolve_engines({"tool": entry}, {}, {}, errors=errors).engines
    assert [error.path for error in errors] == [("engines", "tool", "sleep")]
