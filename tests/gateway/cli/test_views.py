"""The values and rows that commands show, made from a gateway's status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hostler.gateway.cli import views
from hostler.gateway.config import read


def host(**more: Any) -> dict[str, Any]:
    return {"backend": "tower", "reachable": True, "serving": 1, "waiting": 0, "host": None, "engines": [], "queue": [],
            **more}  # fmt: skip


def process(**more: Any) -> dict[str, Any]:
    return {"model": "alpha", "state": "ready", "since": 0.0, "percent": None, "eta_s": None, "pid": 7,
            "memory_bytes": 1024**3, "gpu_bytes": 0, "failure": None, **more}  # fmt: skip


def status(*hosts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"active": None, "at": 100.0, "hosts": hosts, "models": [], "in_flight": [], **more}


def running(*models: dict[str, Any], engines: Any = (), pinned: bool = False, **more: Any) -> list[dict[str, Any]]:
    profiles = [{"name": "alpha", "pinned": pinned}]
    return list(views.processes(status(host(host={"models": models, "profiles": profiles}, engines=engines, **more))))


def test_a_stopped_model_has_no_process() -> None:
    assert running(process(state="stopped")) == []


def test_a_process_is_shown_with_the_gateways_use_of_it() -> None:
    engine = {"model": "alpha", "running": 1, "waiting": 2, "parallel": 4, "idle_until": None, "draining": False}
    (found,) = running(process(), engines=[engine], pinned=True)
    assert (found["host"], found["running"], found["waiting"], found["pinned"]) == ("tower", 1, 2, True)
    (row,) = views.process_rows([found])
    assert row[:3] == ("alpha", "tower", "ready")
    assert row[4:] == ("1.0 GiB", "1/4", "pinned")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"state": "ready"}, "ready"),
        ({"state": "starting"}, "loading"),
        ({"state": "starting", "percent": 40.0, "eta_s": 3.0}, "loading 40 %, 3.0 s left"),
        ({"state": "failed"}, "failed"),
    ],
)
def test_a_process_has_a_state_and_progress(more: dict[str, Any], text: str) -> None:
    (found,) = running(process(**more))
    assert views.process_state(found) == text


def test_a_process_of_an_unreachable_host_is_unreachable() -> None:
    (found,) = running(process(), reachable=False)
    assert found["state"] == "silent"  # in JSON, as programs know it
    assert views.process_state(found) == "unreachable"


def test_a_draining_process_unloads_after_its_last_answer() -> None:
    engine = {"model": "alpha", "running": 1, "waiting": 0, "parallel": 1, "idle_until": None, "draining": True}
    (found,) = running(process(), engines=[engine])
    assert views.process_state(found) == "ready, unloads after its last answer"


def flight(**more: Any) -> dict[str, Any]:
    return {"id": "req-1", "at": 90.0, "client": "laptop", "phase": "waiting", "model": "alpha", "requested_model": "a",
            "backend": None, **more}  # fmt: skip


@pytest.mark.parametrize(
    ("queue", "phase"),
    [
        ([], "waiting"),
        ([{"id": "req-1", "position": 2, "eta_s": None}], "waiting, place 2"),
        ([{"id": "req-1", "position": 2, "eta_s": 4.0}], "waiting, place 2, about 4.0 s"),
        ([{"id": "req-1", "position": 2, "eta_s": float("inf")}], "waiting, place 2"),
    ],
)
def test_a_waiting_request_has_a_place_and_an_estimate(queue: list[dict[str, Any]], phase: str) -> None:
    (row,) = views.request_rows(views.requests(status(host(queue=queue), in_flight=[flight()])))
    assert row == ("req-1", "laptop", "alpha", "-", phase, "10 s")


@pytest.mark.parametrize(
    ("outcome", "text"),
    [("ok", "ok"), ("failed", "failed 503"), ("broken", "broken 503"), ("client_disconnected", "disconnected")],
)
def test_a_finished_request_has_an_outcome(outcome: str, text: str) -> None:
    event = {"at": 0.0, "outcome": outcome, "status": 503, "model": None, "requested_model": "a", "backend": "box",
             "hop": 1, "seconds": 2.0, "first_token_s": 1.0, "completion_tokens": 43, "client": "laptop"}  # fmt: skip
    ((_, *row),) = views.finished_rows([event])
    assert row == [text, "a", "box, hop 2", "2.0 s", "1.0 s", "42 tokens/s", "laptop"]


def test_the_active_model_fits_into_a_line() -> None:
    name = "company/model-of-30-billion-parameters-for-code-instruct-q4-gguf"
    text = views.active_model(status(active=name, in_flight=[flight()]), 60)
    assert text.endswith("; 1 request in progress") and len(text) <= 60 and "…" in text
    assert views.active_model(status(), 60) == "active model: none; 0 requests in progress"


def hop(**more: Any) -> dict[str, Any]:
    breaker = {"state": "closed", "retry_at": None, "reason": None}
    return {"backend": "box", "kind": "openai", "local": True, "reachable": True, "breaker": breaker, "models": [],
            "cost": None, **more}  # fmt: skip


OPEN = {"state": "open", "retry_at": 1e9, "reason": "could not be reached"}


@pytest.mark.parametrize(
    ("more", "state"),
    [
        ({}, "reachable"),
        ({"reachable": False}, "unreachable"),
        ({"breaker": {"state": "half_open", "retry_at": None}}, "tried again with the next request"),
        ({"models": [{"model": "a", **OPEN}, {"model": "b", **OPEN}]}, "reachable, 2 of its models paused"),
    ],
)
def test_a_hop_of_the_chain_has_a_state(more: dict[str, Any], state: str) -> None:
    row, other = views.chain_rows({"chain": {"hops": [hop(**more), hop(local=False, cost=0.5)]}})
    assert row[3] == state
    assert other[2:] == ("external", "reachable", "$0.5000")


def test_a_paused_hop_says_until_when_and_why() -> None:
    row, _ = views.chain_rows({"chain": {"hops": [hop(breaker=OPEN), hop()]}})
    assert row[3].startswith("paused until ") and row[3].endswith(": could not be reached")


def test_a_single_backend_is_no_chain() -> None:
    assert views.chain_rows({"chain": {"hops": [hop()]}}) == []


def test_each_limit_of_a_host_says_where_it_applies(tmp_path: Path) -> None:
    file = tmp_path / "hostler.yaml"
    backend = "backends: {pc: {kind: supervisor, url: 'http://127.0.0.1:9'}}\n"
    file.write_text("gateway: {queue: {max_waiting: 5}}\n" + backend)
    assert list(views.host_limits(read(file, {}))) == [
        ("gateway.queue.max_waiting", 5, "to pc unless set there; of several gateways the largest value applies")
    ]
    file.write_text("gateway: {switching: {patience_s: 3}}\nprofiles: {a: {model: a.gguf}}\n")
    assert list(views.host_limits(read(file, {}))) == [
        ("gateway.switching.patience_s", 3.0, "to the models of this file, for all gateways")
    ]
    file.write_text("gateway: {queue: {max_wait_s: 3}}\n")
    assert list(views.host_limits(read(file, {}))) == [
        ("gateway.queue.max_wait_s", 3.0, "to the bundled models of `hostler up`")
    ]
    file.write_text(backend)
    assert not list(views.host_limits(read(file, {})))
