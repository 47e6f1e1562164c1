"""`hostler supervisor` as a process of its own, called over HTTP, with scripted engines."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fakes.ports import free_ports
from system.hostler_process import HostlerProcess, run_hostler

TOKEN = "shared-token"


class Standalone:
    """A running supervisor and its configuration file, which can be changed."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        self.folder = folder
        self.document = document
        self.path = folder / "hostler.yaml"
        self.running: HostlerProcess

    def save(self, text: str | None = None) -> None:
        self.path.write_text(json.dumps(self.document) if text is None else text)

    def kill(self) -> None:
        self.running.process.send_signal(signal.SIGKILL)
        self.running.process.wait()

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.Client(base_url=f"http://{self.running.address}", headers=headers, trust_env=False, timeout=20)

    def switch(self, model: str, **more: Any) -> dict[str, Any]:
        with self.client() as http:
            answer = http.post("/models/switch", json={"model": model, **more})
            assert answer.status_code == 200, answer.text
            return answer.json()["address"]  # type: ignore[no-any-return]

    def status(self) -> dict[str, dict[str, Any]]:
        with self.client() as http:
            return {model["model"]: model for model in http.get("/models/status").json()["models"]}


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def document(tmp_path: Path, fake_engine: str, journal: Any) -> dict[str, Any]:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"not read by the scripted engine")
    ports = free_ports(8)
    script = {"log": str(journal.file), "ready_after": 0.05}
    profile = {"model": str(model), "env": {"FAKE_ENGINE": json.dumps(script)}}
    return {
        "supervisor": {
            "listen": "127.0.0.1:0", "token": "${env:TEST_TOKEN}", "engine": fake_engine, "engine_ports": f"{ports[0]}-{ports[-1]}",
            "engine_host": "127.0.0.1", "stop_grace_s": 2, "slots_dir": str(tmp_path / "slots"),
        },
        "profiles": {"a": profile, "b": profile},
    }  # fmt: skip


@pytest.fixture
def standalone(tmp_path: Path, document: dict[str, Any]) -> Iterator[Standalone]:
    one = Standalone(tmp_path, document)
    one.save()
    with started(one):
        yield one


@contextmanager
def started(one: Standalone) -> Iterator[Standalone]:
    """Runs it until the context ends."""
    environ = {"TEST_TOKEN": TOKEN, "HOSTLER_CACHE": str(one.folder / "cache")}
    command = ("supervisor", "--config", str(one.path), "--log-level", "debug")
    with run_hostler(*command, errors=one.folder / "log", environ=environ) as one.running:
        yield one


def events_of(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


def test_a_switch_streams_its_phases_and_ends_with_the_address(standalone: Standalone) -> None:
    standalone.switch("a")
    with (
        standalone.client() as http,
        http.stream("POST", "/models/switch", json={"model": "b"}, headers={"Accept": "text/event-stream"}) as response,
    ):
        received = list(events_of(response))
    # A phase that lasts is published repeatedly.
    phases = [phase for phase, _ in groupby(data["phase"] for name, data in received if name == "phase")]
    assert [phase for phase in phases if phase != "saving"] == ["stopping", "starting", "loading", "restoring"]
    assert received[0][1]["from_models"] == ["a"]
    name, last = received[-1]
    assert name == "ready"
    assert last["address"]["model"] == "b"
    assert {"stopping", "starting", "loading"} <= set(last["phase_seconds"])


def test_engines_listen_where_configured_and_require_their_own_key(
    standalone: Standalone, document: dict[str, Any]
) -> None:
    at = standalone.switch("a")
    first, last = map(int, document["supervisor"]["engine_ports"].split("-"))
    assert at["host"] == "127.0.0.1"
    assert first <= at["port"] <= last
    url = f"http://127.0.0.1:{at['port']}/v1/models"
    assert httpx.get(url, trust_env=False).status_code == 401
    assert httpx.get(url, trust_env=False, headers={"Authorization": f"Bearer {at['key']}"}).status_code == 200
    other = standalone.switch("b")
    assert other["key"] != at["key"]


def test_requests_without_the_token_are_rejected(standalone: Standalone) -> None:
    with standalone.client() as http:
        del http.headers["Authorization"]
        for path in ("/models/available", "/models/status", "/models/locate?model=a", "/events", "/logs/a", "/metrics"):
            assert http.get(path).status_code == 401, path
        for path in ("switch", "load", "unload", "answered"):
            assert http.post(f"/models/{path}", json={"model": "a"}).status_code == 401, path
        assert http.get("/healthz").json() == {"status": "ok"}


def test_gateways_of_another_release_are_refused_with_a_word_for_their_log(standalone: Standalone) -> None:
    standalone.switch("a")
    with standalone.client() as http:
        refused = [
            http.post(f"/models/{path}", json={"model": "b", **fields, "epoch": 6})
            for path, fields in (("switch", {"evict": []}), ("load", {}), ("unload", {}), ("pin", {"pinned": True}))
        ]
        refused += [http.get("/models/locate", params={"model": "a"}), http.post("/models/answered", json={})]
        for contract in ("0", "", "x", "٣", "99"):
            headers = [(b"Hostler-Protocol", contract.encode()), (b"Content-Type", b"application/vnd.hostler.leases")]
            refused.append(http.post("/leases", headers=headers))
        for answer in refused:
            assert (answer.status_code, answer.json()["error"]["type"]) == (426, "protocol_mismatch")
            assert "of different releases" in answer.json()["error"]["message"]
        assert refused[-1].json()["error"]["message"].endswith("update the supervisor")
        assert refused[0].json()["error"]["message"].endswith("update the gateway")
    assert standalone.status()["a"]["state"] == "ready"


def test_events_start_with_a_snapshot_and_go_on_with_changes(standalone: Standalone) -> None:
    with standalone.client() as http, http.stream("GET", "/events") as response:
        events = events_of(response)
        name, first = next(events)
        assert name == "snapshot"
        assert [profile["name"] for profile in first["host"]["profiles"]] == ["a", "b"]
        standalone.switch("a")
        states = []
        for name, data in events:
            if name == "model" and data["status"]["model"] == "a":
                states.append(data["status"]["state"])
                if states[-1] == "ready":
                    break
        assert states[0] == "starting"


def test_logs_are_followed_over_a_restart(standalone: Standalone) -> None:
    standalone.switch("a")
    with standalone.client() as http, http.stream("GET", "/logs/a?follow=1") as response:
        lines = response.iter_lines()
        assert "model loaded" in next(lines)
        standalone.switch("b")
        standalone.switch("a")
        assert "model loaded" in next(lines)


def test_keys_and_the_token_are_never_shown(standalone: Standalone) -> None:
    with standalone.client() as http, http.stream("GET", "/events") as response:
        events = events_of(response)
        received = [next(events)]
        address = standalone.switch("a")
        while not (received[-1][0] == "model" and received[-1][1]["status"]["state"] == "ready"):
            received.append(next(events))
        received = [json.dumps(received), http.get("/models/status").text, http.get("/models/available").text]
        received += [http.get("/logs/a").text, http.get("/metrics").text]
    pid = standalone.status()["a"]["pid"]
    received += [Path(f"/proc/{each}/cmdline").read_text() for each in (pid, standalone.running.process.pid)]
    standalone.running.stop()
    received.append(standalone.running.log)
    for secret in (address["key"], TOKEN):
        assert not [text for text in received if secret in text]


def test_metrics_have_counts_and_current_values(standalone: Standalone) -> None:
    standalone.switch("a")
    standalone.switch("b")
    with standalone.client() as http:
        until(lambda: standalone.status()["b"]["memory_bytes"] > 1_000_000)
        text = http.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['hostler_supervisor_starts_total{model="a"}'] == "1.0"
    assert values['hostler_supervisor_model_state{model="b",state="ready"}'] == "1.0"
    assert values['hostler_supervisor_model_state{model="a",state="ready"}'] == "0.0"
    assert float(values['hostler_supervisor_model_memory_bytes{model="b",where="ram"}']) > 1_000_000
    assert values['hostler_supervisor_switch_duration_seconds_count{model="b",outcome="ready"}'] == "1.0"
    assert float(values['hostler_supervisor_switch_phase_seconds_total{phase="loading"}']) > 0
    assert float(values['hostler_supervisor_model_load_seconds{model="a"}']) > 0.04


def test_saved_changes_touch_only_what_changed(standalone: Standalone) -> None:
    before = standalone.switch("a")
    standalone.document["profiles"]["b"] = {**standalone.document["profiles"]["b"], "context": 512}
    standalone.document["profiles"]["c"] = {"base": "a"}
    standalone.save()
    until(lambda: "c" in standalone.status())
    assert standalone.switch("a") == before
    standalone.save("profiles: {a: {modell: x}}")
    until(lambda: "hostler.yaml:1" in standalone.running.log)
    assert standalone.switch("a") == before
    standalone.document["profiles"]["a"] = {**standalone.document["profiles"]["a"], "context": 1024}
    standalone.save()
    until(lambda: standalone.status()["a"]["state"] == "stopped")
    assert standalone.switch("a")["context"] == 1024


@pytest.mark.parametrize("when", ["ready", "starting", "stopping"])
def test_when_killed_it_leaves_no_process_and_the_next_one_works(
    tmp_path: Path, document: dict[str, Any], journal: Any, when: str
) -> None:
    script = {"log": str(journal.file), "ready_after": 0.05, "slow_exit": 5 if when == "stopping" else 0}
    document["profiles"]["a"] = {**document["profiles"]["a"], "env": {"FAKE_ENGINE": json.dumps(script)}}
    standalone = Standalone(tmp_path, document)
    standalone.save()
    with started(standalone):
        if when != "starting":
            standalone.switch("a")
        if when != "ready":
            received = {"Accept": "text/event-stream"}
            with (
                standalone.client() as http,
                http.stream("GET", "/events") as response,
                standalone.client() as other,
                other.stream("POST", "/models/switch", json={"model": "b"}, headers=received),
            ):
                for name, data in events_of(response):
                    if name == "model" and data["status"]["state"] == when and data["status"]["pid"]:
                        break
                standalone.kill()
        standalone.kill()
    for pid in journal.pids():
        until(partial(is_gone, pid))
    for file in standalone.folder.rglob("*.json"):
        json.loads(file.read_bytes())
    with started(standalone):
        assert standalone.switch("a")["model"] == "a"
        # What was half written is removed.
        until(
            lambda: (
                not [file for file in standalone.folder.rglob("*") if file.suffix in (".new", ".part", ".restoring")]
            )
        )


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_changes_saved_right_after_the_start_are_applied_too(standalone: Standalone) -> None:
    standalone.document["profiles"]["c"] = {"base": "a"}
    standalone.save()
    until(lambda: "c" in standalone.status())


def test_a_stop_ends_streams_and_engines(standalone: Standalone, journal: Any) -> None:
    standalone.switch("a")
    with standalone.client() as http, http.stream("GET", "/events") as response:
        events = events_of(response)
        next(events)
        # It does not wait for streams to end by themselves; after 40 s this gives up.
        assert standalone.running.stop() == 0
        assert not [name for name, _ in events if name == "snapshot"]
    assert journal.events("stop", "a")


def test_a_second_stop_waits_for_nothing(tmp_path: Path, document: dict[str, Any], journal: Any) -> None:
    """Neither for an answer in progress nor for an engine that takes its time to end, as long as `drain_s` and `stop_grace_s`."""
    script = {"log": str(journal.file), "ready_after": 0.05, "last_when": str(tmp_path / "never"), "ignore_stop": True}
    document["profiles"]["a"]["env"] = {"FAKE_ENGINE": json.dumps(script)}
    document["supervisor"] |= {"drain_s": 600, "stop_grace_s": 600}
    one = Standalone(tmp_path, document)
    one.save()
    with started(one):
        address = one.switch("a")
        engine = psutil.Process(journal.events("start", "a")[-1]["pid"])
        headers = {"Authorization": f"Bearer {address['key']}"}
        body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
        with (
            httpx.Client(
                base_url=f"http://{address['host']}:{address['port']}", headers=headers, trust_env=False, timeout=20
            ) as http,
            http.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            next(answer.iter_lines())
            # One that follows within a moment repeats the first one.
            until(lambda: one.running.process.send_signal(signal.SIGTERM) or "stopping now" in one.running.log)
            one.running.process.wait(30)
        until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)
