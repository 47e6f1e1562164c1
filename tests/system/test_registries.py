"""Models from registries, from a name to a chat: a hub on loopback, and the embedded engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.scripted_hub import TOKEN, ScriptedHub, hub_environment, running_hub
from system.hostler_process import HostlerProcess, run_hostler

from bench.random_models import write_model

pytestmark = pytest.mark.engine

MESSAGES = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHub]:
    """A hub with a real model, from an empty working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with running_hub() as scripted:
        content = write_model(tmp_path / "m.gguf", "llama").read_bytes()
        scripted.add("org/tiny-GGUF", "tiny-Q8_0.gguf", content)
        scripted.add_registry_model(
            "library/tiny", "8b", model=content, license=b"Apache-2.0", params=b'{"temperature": 0}'
        )
        yield scripted


def environment(hub: ScriptedHub, folder: Path) -> dict[str, str]:
    state = {name: str(folder / name.lower()) for name in ("HOSTLER_CACHE", "XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    return {**state, **hub_environment(hub, str(folder / "huggingface")), "PATH": os.defpath}


def post(hostler: HostlerProcess, path: str, **body: Any) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=120) as http:
        return http.post(hostler.address + path, json=body)


def pulled(hostler: HostlerProcess, model: str) -> list[dict[str, Any]]:
    """The lines of a pull, as `ollama pull` reads them."""
    return [json.loads(line) for line in post(hostler, "/api/pull", model=model).raise_for_status().text.splitlines()]


def chat(hostler: HostlerProcess, model: str) -> str:
    body: dict[str, Any] = {"messages": MESSAGES, "stream": False, "options": {"num_predict": 4}}
    answer = post(hostler, "/api/chat", model=model, **body).raise_for_status().json()
    return str(answer["message"]["content"])


def test_two_commands_lead_from_nothing_to_a_chat(hub: ScriptedHub, tmp_path: Path) -> None:
    environ = environment(hub, tmp_path)
    hub.cuts = [100_000]
    subprocess.run(
        [sys.executable, "-m", "hostler.gateway", "get", "-hf", "org/tiny-GGUF:Q8"],
        check=True, capture_output=True, env={**os.environ, **environ},
    )  # fmt: skip
    with Path("hostler.yaml").open("a") as file:
        file.write('gateway: {listen: ["127.0.0.1:0"]}\n')
    with run_hostler("up", "--plain", errors=tmp_path / "log", environ=environ) as hostler:
        assert chat(hostler, "tiny-q8_0")
        assert chat(hostler, "hf.co/org/tiny-GGUF:Q8_0")


def test_ollama_s_clients_pull_new_models(hub: ScriptedHub, tmp_path: Path) -> None:
    Path("hostler.yaml").write_text(
        'gateway: {listen: ["127.0.0.1:0"]}\nsupervisor: {engine: embedded}\nprofiles: {scan: []}\n'
    )
    hub.gated.add("org/tiny-GGUF")
    environ = environment(hub, tmp_path)
    with run_hostler("up", "--plain", errors=tmp_path / "log", environ=environ) as hostler:
        refused = pulled(hostler, "hf.co/org/tiny-GGUF:Q8_0")
        assert "the model is gated" in refused[-1]["error"]
    with run_hostler("up", "--plain", errors=tmp_path / "log", environ={**environ, "HF_TOKEN": TOKEN}) as hostler:
        for name in ("hf.co/org/tiny-GGUF:Q8_0", "tiny:8b"):
            lines = pulled(hostler, name)
            assert lines[0]["status"] == "pulling manifest" and lines[-1]["status"] == "success"
            assert chat(hostler, name)
        shown = post(hostler, "/api/show", model="tiny:8b").json()
        assert shown["license"] == "Apache-2.0" and "temperature" in shown["parameters"]
        assert "error" in pulled(hostler, "hf.co/org/nowhere")[-1]
        assert (
            post(hostler, "/api/pull", model="unknown").status_code == 404 or "error" in pulled(hostler, "unknown")[-1]
        )
    assert TOKEN not in (tmp_path / "log").read_text()
