"""`hostler get`: what it prints, what it downloads, and the profile that it adds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.model_folders import write_chat
from fakes.scripted_hub import TOKEN, ScriptedHub, hub_environment, running_hub
from typer.testing import CliRunner, Result

from hostler.gateway.cli.main import app
from hostler.gateway.config import read


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHub]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOSTLER_CONFIG", raising=False)
    monkeypatch.setenv("HOSTLER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with running_hub() as scripted:
        for name, value in hub_environment(scripted, str(tmp_path / "huggingface")).items():
            monkeypatch.setenv(name, value)
        scripted.add("org/m-GGUF", "m-Q4_K_M.gguf", write_chat(tmp_path / "m.gguf").read_bytes())
        yield scripted


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["get", *arguments])


def output(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_words_are_searched_for(hub: ScriptedHub) -> None:
    result = run("m", "gguf")
    assert result.exit_code == 1 and "no repository with GGUF files was found for 'm gguf'" in result.output
    shown = run("m-gguf").output
    assert "org/m-GGUF" in shown and "`hostler get org/m-GGUF` shows which of its files fit" in shown
    assert output("m-gguf") == [{"name": "org/m-GGUF", "downloads": 7, "likes": 1}]


def test_a_list_downloads_nothing(hub: ScriptedHub, tmp_path: Path) -> None:
    shown = run("org/m-GGUF", "--list").output
    assert [line.split()[0] for line in shown.splitlines()[:2]] == ["QUANTIZATION", "Q4_K_M"] and " yes " in shown
    assert output("org/m-GGUF", "--list")[0]["quantization"] == "Q4_K_M"
    assert not (tmp_path / "cache").exists() and not Path("hostler.yaml").exists()


@pytest.mark.parametrize(
    "arguments", [("hf.co/org/m-GGUF:Q4_K_M",), ("hf:org/m-GGUF:Q4_K_M",), ("-hf", "org/m-GGUF:Q4"), ("org/m-GGUF",)]
)
def test_every_spelling_gets_the_model_and_adds_its_profile(hub: ScriptedHub, arguments: tuple[str, ...]) -> None:
    got = output(*arguments)
    assert (got["name"], got["context"], got["profile"]) == ("m-q4_k_m", 2048, "hostler.yaml")
    assert Path(got["file"]).read_bytes() == hub.files["org/m-GGUF/m-Q4_K_M.gguf"]
    profile = read(Path("hostler.yaml"), {}).profiles[0]
    assert (profile.name, profile.model, profile.context) == ("m-q4_k_m", "hf:org/m-GGUF/m-Q4_K_M.gguf", 2048)
    assert output(*arguments)["name"] == "m-q4_k_m"
    assert len(read(Path("hostler.yaml"), {}).profiles) == 1


def test_a_name_that_is_taken_is_said_to_be(hub: ScriptedHub) -> None:
    Path("hostler.yaml").write_text("profiles: {m-q4_k_m: {model: x.gguf}}\n")
    result = run("org/m-GGUF")
    assert result.exit_code == 1 and "choose another name with --name" in result.output
    assert run("org/m-GGUF", "--name", "other").exit_code == 0


def test_the_registry_s_licence_is_shown(hub: ScriptedHub, tmp_path: Path) -> None:
    hub.add_registry_model("library/qwen3", "8b", model=hub.files["org/m-GGUF/m-Q4_K_M.gguf"], license=b"MIT\n" * 20)
    shown = run("qwen3:8b").output
    assert "licence: MIT" in shown and "and 8 more lines" in shown
    found = read(Path("hostler.yaml"), {})
    assert [profile.name for profile in found.profiles] == ["qwen3:8b"]
    assert found.presets["qwen3:8b"].license == ("MIT\n" * 20,)
    assert output("ollama:qwen3:8b", "--list")["licenses"] == ["MIT\n" * 20]


def test_failures_are_one_line_without_the_token(hub: ScriptedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.gated.add("org/m-GGUF")
    result = run("org/m-GGUF")
    assert result.exit_code == 1 and "accept its terms on" in result.output and "hf_wrong" not in result.output
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run("org/m-GGUF").exit_code == 0
    assert run("org/m-GGUF:Q2_K").output.startswith("hostler: org/m-GGUF has no Q2_K; it has: Q4_K_M")
    assert run("hf.co/x").exit_code == 1
    assert run().exit_code == 2
