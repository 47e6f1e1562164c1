"""`hostler import`: what it prints and writes, for each kind of source."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from fakes.model_folders import write_chat
from typer.testing import CliRunner, Result

from hostler.gateway.cli.main import app

SWAP = """\
apiKeys: [client-secret-key]
models:
  chat:
    cmd: {program} --port ${{PORT}} -m chat.gguf -c 512
    unlistedKey: {{a: 1}}
  other:
    cmd: {program} serve ${{PORT}}
peers:
  cloud: {{proxy: "https://cloud.example", models: [big], apiKey: peer-secret-key}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model and a program that stands for llama-server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOSTLER_CONFIG", raising=False)
    monkeypatch.setenv("HOSTLER_CACHE", str(tmp_path / "cache"))
    write_chat(tmp_path / "chat.gguf")
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "swap.yaml").write_text(SWAP.format(program=program))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["import", *arguments])


def check(file: str = "hostler.yaml") -> Result:
    return CliRunner().invoke(app, ["check", file])


def _ollama_store(folder: Path) -> str:
    digest = "a" * 64
    store = folder / "store"
    manifest = store / "manifests/registry.ollama.ai/library/tiny/latest"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    (store / "blobs").mkdir()
    write_chat(store / "blobs" / f"sha256-{digest}")
    return str(store)


def _source(kind: str, folder: Path) -> str:
    match kind:
        case "ollama":
            return _ollama_store(folder)
        case "lmstudio":
            (folder / "studio/models").mkdir(parents=True)
            write_chat(folder / "studio/models/tiny.gguf")
            return str(folder / "studio")
        case "llama-server":
            (folder / "models.ini").write_text("[chat]\nmodel = chat.gguf\nctx-size = 512\n")
            return "models.ini"
        case "litellm":
            text = "model_list: [{model_name: m, litellm_params: {model: openai/x, api_key: cloud-secret-key}}]"
            (folder / "litellm.yaml").write_text(text)
            return "litellm.yaml"
    return "swap.yaml"


@pytest.mark.parametrize("kind", ["ollama", "llama-swap", "lmstudio", "llama-server", "litellm"])
def test_the_result_passes_the_check(folder: Path, kind: str) -> None:
    result = run(kind, _source(kind, folder))
    assert result.exit_code == 0, result.output
    assert "taken over: " in result.stdout and "wrote hostler.yaml" in result.stdout
    checked = check()
    assert checked.exit_code == 0, checked.output


def test_the_report_has_lines_and_says_what_is_missing() -> None:
    result = run("llama-swap", "swap.yaml")
    assert "not taken over: 1\n  swap.yaml:5: models.chat.unlistedKey: " in result.stdout


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    result = run("llama-swap", "swap.yaml", "--dry-run")
    assert result.exit_code == 0 and "hostler.yaml would be:" in result.stdout and "profiles:" in result.stdout
    assert sorted(folder.rglob("*")) == before


def test_the_result_is_as_private_as_its_source(folder: Path) -> None:
    (folder / "swap.yaml").chmod(0o640)
    assert run("llama-swap", "swap.yaml").exit_code == 0
    assert stat.S_IMODE((folder / "hostler.yaml").stat().st_mode) == 0o600


def test_secrets_are_in_files_that_only_their_owner_may_read(folder: Path) -> None:
    result = run("llama-swap", "swap.yaml")
    assert "secret-key" not in result.output and "secret-key" not in (folder / "hostler.yaml").read_text()
    for name in ("hostler.keys", "hostler.cloud.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert (folder / "hostler.cloud.key").read_text() == "peer-secret-key\n"


@pytest.mark.parametrize("name", ["hostler.yaml", "hostler.keys", "hostler.cloud.key"])
def test_files_that_exist_are_not_overwritten(folder: Path, name: str) -> None:
    (folder / name).write_text("mine\n")
    result = run("llama-swap", "swap.yaml")
    assert result.exit_code == 2 and f"{name} exists already" in result.output
    assert (folder / name).read_text() == "mine\n"
    assert not [each for each in ("hostler.yaml", "hostler.keys") if each != name and (folder / each).exists()]


def test_files_are_replaced_if_that_is_asked_for(folder: Path) -> None:
    (folder / "hostler.yaml").write_text("mine\n")
    (folder / "hostler.keys").write_text("mine\n")
    assert run("llama-swap", "swap.yaml", "--force").exit_code == 0
    assert check().exit_code == 0 and stat.S_IMODE((folder / "hostler.keys").stat().st_mode) == 0o600


def test_the_source_is_never_written_to(folder: Path) -> None:
    before = (folder / "swap.yaml").read_bytes()
    (folder / "link.yaml").symlink_to("swap.yaml")
    for output in ("swap.yaml", "link.yaml"):
        result = run("llama-swap", "swap.yaml", "--output", output, "--force")
        assert result.exit_code == 2 and "is part of the source" in result.output
    assert (folder / "swap.yaml").read_bytes() == before


def test_a_store_is_never_written_to(folder: Path) -> None:
    store = _source("ollama", folder)
    result = run("ollama", store, "--output", f"{store}/hostler.yaml")
    assert result.exit_code == 2 and "is part of the source" in result.output


def test_json_has_every_note(folder: Path) -> None:
    report = json.loads(run("llama-swap", "swap.yaml", "--json").stdout)
    assert report["missing"] == [
        {
            "file": "swap.yaml", "line": 5, "key": "models.chat.unlistedKey",
            "text": "is unknown, or has a value of the wrong kind",
        }
    ]  # fmt: skip
    assert report["written"][0] == "hostler.yaml" and "profiles:" in report["configuration"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("vllm", "x"), 2, "Invalid value"),
        (("litellm",), 1, "name the configuration file"),
        (("litellm", "none.yaml"), 1, "none.yaml: there is no such file"),
        (("litellm", "bin"), 1, "bin: is a folder"),
        (("ollama", "swap.yaml"), 1, "swap.yaml: is not a folder"),
        (("litellm", "chat.gguf"), 1, "chat.gguf: "),
    ],
)
def test_a_wrong_source_is_named(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code and message in result.output


def test_a_folder_of_another_user_is_an_error(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp())  # other users do not get into `tmp_path`
    try:
        (folder / "models").mkdir(mode=0o000)
        folder.chmod(0o755)
        if os.getuid() == 0:
            os.seteuid(65534)
        result = run("ollama", str(folder / "models/below"), "--dry-run")
    finally:
        os.seteuid(os.getuid())
        shutil.rmtree(folder)
    assert result.exit_code == 1
    assert f"{folder}/models/below: cannot be read: Permission denied" in result.stderr


@pytest.mark.parametrize(
    ("kind", "text", "hint"),
    [
        ("litellm", "models: {a: {cmd: x}}\n", "hostler import llama-swap odd.yaml"),
        ("llama-swap", "model_list: []\n", "hostler import litellm odd.yaml"),
        ("litellm", "# [note]\n", "nothing written\n"),
        ("llama-swap", "", "nothing written\n"),
        ("llama-server", "", "nothing written\n"),
    ],
)
def test_a_file_with_nothing_to_take_over_is_an_error(folder: Path, kind: str, text: str, hint: str) -> None:
    (folder / "odd.yaml").write_text(text)
    for options in ((), ("--dry-run",), ("--json",)):
        result = run(kind, "odd.yaml", *options)
        assert result.exit_code == 1 and "nothing is taken over" in result.stderr and hint in result.stderr
    assert not (folder / "hostler.yaml").exists()


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_in_another_encoding_is_to_be_saved_again(folder: Path, encoding: str) -> None:
    (folder / "odd.yaml").write_text("models: {é: 1}\n", encoding=encoding)
    result = run("llama-swap", "odd.yaml")
    assert result.exit_code == 1 and "save the file as text in UTF-8" in result.stderr


@pytest.mark.parametrize("kind", ["litellm", "lmstudio"])
def test_the_home_of_an_unknown_user_is_a_file_that_is_not_there(kind: str) -> None:
    result = run(kind, "~nobody-of-this-name/x")
    assert result.exit_code == 1 and "the home directory ~nobody-of-this-name is unknown" in result.stderr


def test_a_note_is_one_line_whatever_the_name_of_a_model(folder: Path) -> None:
    (folder / "studio/models").mkdir(parents=True)
    (folder / "studio/models/a\nb.gguf").write_bytes(b"<html>")
    write_chat(folder / "studio/models/c.gguf")
    result = run("lmstudio", "studio", "--dry-run")
    assert any("a?b.gguf: is not a GGUF file" in line for line in result.stdout.splitlines())


def test_a_file_that_is_no_model_is_not_taken_over_from_a_store(folder: Path) -> None:
    store = Path(_ollama_store(folder))
    (blob,) = (store / "blobs").iterdir()
    blob.write_bytes(b"<html>")
    result = run("ollama", str(store))
    assert result.exit_code == 1 and "its file is no GGUF file that can be read" in result.stdout
    assert not (folder / "hostler.yaml").exists()
