"""Saved changes of the configuration apply while running; what did not change is not touched."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from system.hostler_process import HostlerProcess, run_hostler
from system.running_gateway import FAKE_ENGINE


class Configured:
    """A running `hostler up` and its configuration file."""

    def __init__(self, running: HostlerProcess, path: Path, document: dict[str, Any]) -> None:
        self.running = running
        self.document = document
        self._path = path

    def save(self, text: str | None = None) -> None:
        self._path.write_text(json.dumps(self.document) if text is None else text)

    def models(self) -> list[str]:
        return [each["id"] for each in httpx.get(f"{self.running.address}/v1/models").json()["data"]]

    def chat(self, model: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        return httpx.post(f"{self.running.address}/v1/chat/completions", json=body, timeout=20)

    def pid(self, model: str) -> int | None:
        host = httpx.get(f"{self.running.address}/admin/status").json()["hosts"][0]["host"]
        return next((each["pid"] for each in host["models"] if each["model"] == model), None)


def until(condition: Callable[[], object]) -> None:
    """Wait for another process."""
    end = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[Configured]:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"not read by the scripted engine")
    document = {
        "gateway": {"listen": ["127.0.0.1:0"]},
        "supervisor": {"engine": f"python3 -I -S {FAKE_ENGINE}"},
        "profiles": {"a": {"model": str(model)}},
    }
    path = tmp_path / "hostler.yaml"
    path.write_text(json.dumps(document))
    with run_hostler("up", "--config", str(path), errors=tmp_path / "log") as running:
        yield Configured(running, path, document)


def test_a_new_profile_is_served_and_the_running_engine_is_kept(configured: Configured) -> None:
    configured.chat("a")
    before = configured.pid("a")
    configured.document["profiles"]["b"] = {"base": "a"}
    configured.save()
    until(lambda: "b" in configured.models())
    assert configured.pid("a") == before
    assert configured.chat("b").status_code == 200


def test_a_changed_profile_gets_a_new_engine_and_a_removed_one_is_gone(configured: Configured) -> None:
    configured.document["profiles"]["b"] = {"base": "a"}
    configured.save()
    until(lambda: "b" in configured.models())
    configured.chat("a")
    before = configured.pid("a")
    configured.document["profiles"] = {"a": {**configured.document["profiles"]["a"], "context": 512}}
    configured.save()
    until(lambda: configured.models() == ["a"])
    assert configured.chat("a").status_code == 200
    assert configured.pid("a") not in (None, before)
    assert configured.chat("b").status_code == 404


def test_a_broken_file_is_refused_with_its_line_and_changes_nothing(configured: Configured) -> None:
    configured.chat("a")
    before = configured.pid("a")
    configured.save("profiles:\n  a: {modell: x}\n")
    until(lambda: "unknown key, did you mean model?" in configured.running.log)
    assert "hostler.yaml:2" in configured.running.log
    assert configured.pid("a") == before
    assert configured.chat("a").status_code == 200


def test_an_unchanged_file_changes_nothing(configured: Configured) -> None:
    configured.chat("a")
    before = configured.pid("a")
    configured.save()
    configured.document["profiles"]["marker"] = {"base": "a"}
    configured.save()
    until(lambda: "marker" in configured.models())
    assert configured.pid("a") == before
