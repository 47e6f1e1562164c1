"""`hostler up PATH`: from a folder of model files to a chat, with the embedded engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.downloads import wait_until
from fakes.model_copies import fill_folder
from system.hostler_process import HostlerProcess, run_hostler

from bench.random_models import write_model

pytestmark = pytest.mark.engine

MESSAGES = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model, one for embeddings, and one in two parts."""
    folder = tmp_path_factory.mktemp("models")
    model = tmp_path_factory.mktemp("model") / "random.gguf"
    write_model(model, "llama")
    fill_folder(model, folder)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """A newcomer's: nothing is configured, and no llama-server is installed."""
    state = {name: str(folder / name.lower()) for name in ("HOSTLER_CACHE", "XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    return {**state, "PATH": os.defpath}


def post(hostler: HostlerProcess, path: str, **body: Any) -> Any:
    with httpx.Client(trust_env=False, timeout=120) as http:
        return http.post(hostler.address + path, json=body).raise_for_status().json()


def listed(hostler: HostlerProcess) -> set[str]:
    with httpx.Client(trust_env=False, timeout=20) as http:
        return {model["id"] for model in http.get(f"{hostler.address}/v1/models").raise_for_status().json()["data"]}


def test_a_folder_of_models_is_served(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("up", str(models), "--listen", "127.0.0.1:0", "--plain")
    with run_hostler(*arguments, errors=tmp_path / "log", environ=environment(tmp_path)) as hostler:
        answer = post(hostler, "/v1/chat/completions", model="chat-q8_0", messages=MESSAGES, max_tokens=4)
        assert answer["choices"][0]["message"]["content"]
        assert listed(hostler) == {"chat-q8_0", "vectors-f16", "big"}
        assert post(hostler, "/v1/embeddings", model="vectors-f16", input="Hello")["data"][0]["embedding"]
        assert post(hostler, "/v1/chat/completions", model="big", messages=MESSAGES, max_tokens=4)["choices"]
        printed = "\n".join(hostler.printed)
        assert "engine: embedded" in printed and "tokens of context that it was" in printed


def test_the_only_chat_model_needs_no_name(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = (str(models / "Chat-Q8_0.gguf"), str(models / "embeddings"))
    arguments = ("up", *paths, "--listen", "127.0.0.1:0", "--plain")
    with run_hostler(*arguments, errors=tmp_path / "log", environ=environment(tmp_path)) as hostler:
        assert post(hostler, "/v1/chat/completions", messages=MESSAGES, max_tokens=4)["model"] == "chat-q8_0"
        assert post(hostler, "/v1/embeddings", model="vectors-f16", input="Hello")["data"]
        assert post(hostler, "/v1/chat/completions", messages=MESSAGES, max_tokens=4)["model"] == "chat-q8_0"


def test_what_is_saved_is_served_the_same_with_the_key(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("up", str(models), "--save", "--listen", "127.0.0.1:0", "--key", "my-own-key", "--plain")
    environ = environment(tmp_path)

    def status(hostler: HostlerProcess, key: str) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=20) as http:
            return http.get(f"{hostler.address}/admin/status", headers={"Authorization": f"Bearer {key}"})

    with run_hostler(*arguments, errors=tmp_path / "log", environ=environ) as hostler:
        assert status(hostler, "another").status_code == 401
        first = status(hostler, "my-own-key").json()["models"]
    with run_hostler("up", "--plain", errors=tmp_path / "log2", environ=environ) as hostler:
        assert status(hostler, "another").status_code == 401
        second = status(hostler, "my-own-key").json()["models"]

    def shown(cards: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return [(card["name"], card["context"], card["parallel"], card["capabilities"]) for card in cards]

    assert shown(first) == shown(second)
    assert "my-own-key" not in (tmp_path / "log").read_text()


def test_models_come_and_go_with_their_files(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "watched"
    folder.mkdir()
    (tmp_path / "hostler.yaml").write_text(
        'gateway: {listen: ["127.0.0.1:0"]}\nsupervisor: {engine: embedded}\nprofiles: {scan: [watched]}\n'
    )
    whole = (models / "Chat-Q8_0.gguf").read_bytes()
    with run_hostler("up", "--plain", errors=tmp_path / "log", environ=environment(tmp_path)) as hostler:
        assert listed(hostler) == set()
        (folder / "one.gguf").write_bytes(whole)
        (folder / "half.gguf").write_bytes(whole[:-5000])
        wait_until(lambda: listed(hostler) == {"one"})
        assert post(hostler, "/v1/chat/completions", messages=MESSAGES, max_tokens=4)["model"] == "one"
        (folder / "half.gguf").write_bytes(whole)
        wait_until(lambda: listed(hostler) == {"half", "one"})
        (folder / "one.gguf").unlink()
        (folder / "half.gguf").unlink()
        wait_until(lambda: listed(hostler) == {"one"})
        assert post(hostler, "/v1/chat/completions", messages=MESSAGES, max_tokens=4)["model"] == "one"
        with httpx.Client(trust_env=False, timeout=60) as http:
            http.post(f"{hostler.address}/admin/unload", json={"model": "one"}).raise_for_status()
        wait_until(lambda: listed(hostler) == set())


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_a_path_without_models_is_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with (
        pytest.raises(AssertionError, match=r"ended with 2: hostler: (nowhere: no such file|no models were found)"),
        run_hostler("up", path, "--plain", errors=tmp_path / "log", environ=environment(tmp_path)),
    ):
        pass
