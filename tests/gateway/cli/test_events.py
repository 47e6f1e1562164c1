"""Events as sentences: each state once, as it is now."""

from __future__ import annotations

from typing import Any

from hostler.gateway.cli.events import EventSentences, describe_event

FAILURE = {"message": "the engine ended"}


def engine(state: str, **more: Any) -> dict[str, Any]:
    status = {"model": "a", "state": state, "percent": None, "failure": None, **more}
    return {"backend": "local", "status": status}


def test_a_models_state_is_not_repeated() -> None:
    sentences = EventSentences()
    assert sentences.describe_new("engine", engine("starting")) == "local: a is starting"
    assert sentences.describe_new("engine", engine("starting", since=2.0)) is None
    assert sentences.describe_new("engine", engine("ready")) == "local: a is ready"
    assert sentences.describe_new("engine", engine("starting")) == "local: a is starting"
    other = engine("starting", model="b")
    assert sentences.describe_new("engine", other) == "local: b is starting"


def test_a_hosts_state_is_not_repeated() -> None:
    sentences = EventSentences()
    answers, silent = ({"backend": "tower", "reachable": each} for each in (True, False))
    texts = [sentences.describe_new("host", each) for each in (answers, answers, silent, answers)]
    assert texts == ["tower is reachable", None, "tower is unreachable", "tower is reachable"]


def test_a_hosts_state_in_the_snapshot_is_not_repeated() -> None:
    sentences = EventSentences()
    host = {"backend": "tower", "reachable": True}
    sentences.describe_new("snapshot", {"version": "1", "models": [], "hosts": [host], "in_flight": []})
    assert sentences.describe_new("host", host) is None
    assert sentences.describe_new("host", {**host, "reachable": False}) == "tower is unreachable"


def test_a_restarting_model_is_not_called_failed() -> None:
    assert describe_event("engine", engine("starting", failure=FAILURE)) == "local: a is starting"
    assert describe_event("engine", engine("failed", failure=FAILURE)) == "local: a is failed: the engine ended"


def test_a_ready_model_has_no_percentage() -> None:
    switch = {"model": "a", "from_models": [], "phase": "ready", "percent": 100.0, "elapsed_s": 2.0, "eta_s": None,
              "failure": None}  # fmt: skip
    assert describe_event("switch", {"backend": "local", "switch": switch}) == "local: switch to a: ready after 2.0 s"


def test_models_of_other_servers_are_counted_separately() -> None:
    states = ("loaded", "unloaded", "available", "unavailable")
    told = describe_event("snapshot", {"version": "1", "models": [{"state": each} for each in states], "in_flight": []})
    assert told == "4 models, 1 loaded, 1 available elsewhere, 1 unavailable; 0 requests in progress"
