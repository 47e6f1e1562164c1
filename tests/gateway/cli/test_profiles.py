"""`hostler profiles`: list, show, remove, rename."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.model_folders import write_chat, write_other
from typer.testing import CliRunner, Result

from hostler.gateway.cli.main import app


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file with two profiles of a model, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOSTLER_CONFIG", raising=False)
    (tmp_path / "x.gguf").write_bytes(b"x" * 2048)
    path = tmp_path / "hostler.yaml"
    path.write_text(
        "# mine\nprofiles:\n  a:\n    model: x.gguf\n    default: true\n  far: {model: 'hf:o/r/m.gguf', base: a}\n"
    )
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["profiles", *arguments])


def output(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def test_the_list_shows_profiles_and_their_files(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTLER_CACHE", str(file.parent / "cache"))
    lines = [" ".join(line.split()) for line in run("list").output.splitlines()]
    assert lines == [
        "PROFILE CONTEXT SLOTS SIZE MODEL",
        f"a * 4096 1 2.0 KiB {file.parent}/x.gguf",
        "far 4096 1 not here hf:o/r/m.gguf",
    ]
    assert [(row["name"], row["size"]) for row in output("list")] == [("a", 2048), ("far", None)]


def test_a_profile_is_shown_with_what_it_sets(file: Path) -> None:
    assert run("show", "a").output == f"name: a\nmodel: {file.parent}/x.gguf\ndefault: true\n"
    assert output("show", "far") == {"name": "far", "model": "hf:o/r/m.gguf"}
    result = run("show", "b")
    assert result.exit_code == 2 and "unknown model 'b'" in result.output


def test_a_profile_is_renamed_and_removed(file: Path) -> None:
    assert "renamed a to b in hostler.yaml" in run("rename", "a", "b").output
    assert "base: b" in file.read_text()
    assert run("remove", "b").exit_code == 1
    assert output("remove", "far") == {"name": "far", "file": "hostler.yaml"}
    assert output("rename", "b", "c") == {"name": "c", "file": "hostler.yaml"}
    assert file.read_text() == "# mine\nprofiles:\n  c:\n    model: x.gguf\n    default: true\n"


def test_without_a_file_there_is_nothing_to_change(file: Path) -> None:
    file.unlink()
    result = run("remove", "a")
    assert result.exit_code == 2 and "there is no configuration file" in result.output


def test_models_of_scanned_folders_are_listed_and_checked(file: Path) -> None:
    write_chat(file.parent / "models/found.gguf")
    file.write_text("supervisor: {engine: embedded}\nprofiles: {scan: [models]}\n")
    assert [(row["name"], row["context"]) for row in output("list")] == [("found", 2048)]
    assert output("show", "found")["model"] == f"{file.parent}/models/found.gguf"
    checked = CliRunner().invoke(app, ["check", "--json"])
    assert json.loads(checked.stdout)["profiles"] == ["found"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.gguf", b"", "is empty; the download may be incomplete"),
        ("page.gguf", b"<!doctype html>", "it is a web page"),
        ("~nobody-of-this-name/x.gguf", None, "no such file"),
        ("n" * 300 + ".gguf", None, "no such file"),
    ],
)
def test_a_file_that_is_no_model_is_not_added(file: Path, name: str, content: bytes | None, reason: str) -> None:
    before = file.read_bytes()
    if content is not None:
        (file.parent / name).write_bytes(content)
    result = run("add", name)
    assert result.exit_code == 1 and reason in result.stderr
    assert file.read_bytes() == before


def test_a_lora_adapter_is_not_added_as_a_model(file: Path) -> None:
    write_other(file.parent / "lora.gguf", "adapter")
    result = run("add", "lora.gguf")
    assert result.exit_code == 1 and "is a LoRA adapter, not a model" in result.stderr
