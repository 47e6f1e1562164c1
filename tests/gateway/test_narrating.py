"""What a person at the terminal is told: each thing once, as it is now, and no more than can be read."""

from __future__ import annotations

from typing import Any

from hostler.gateway.cli.client import unknown_model
from hostler.gateway.cli.doctor import route_rows
from hostler.gateway.cli.events import Narrator, sentence

FAILURE = {"message": "the engine ended"}


def engine(state: str, **more: Any) -> dict[str, Any]:
    status = {"model": "a", "state": state, "percent": None, "failure": None, **more}
    return {"backend": "local", "status": status}


def test_what_was_told_of_a_model_last_is_not_told_again() -> None:
    narrator = Narrator()
    assert narrator.news("engine", engine("starting")) == "local: a is starting"
    assert narrator.news("engine", engine("starting", since=2.0)) is None
    assert narrator.news("engine", engine("ready")) == "local: a is ready"
    assert narrator.news("engine", engine("starting")) == "local: a is starting"
    other = engine("starting", model="b")
    assert narrator.news("engine", other) == "local: b is starting"


def test_a_host_that_still_answers_is_no_news() -> None:
    narrator = Narrator()
    answers, silent = ({"backend": "tower", "reachable": each} for each in (True, False))
    told = [narrator.news("host", each) for each in (answers, answers, silent, answers)]
    assert told == ["tower answers", None, "tower is silent", "tower answers"]


def test_what_the_beginning_says_of_a_host_is_no_news() -> None:
    narrator = Narrator()
    host = {"backend": "tower", "reachable": True}
    narrator.news("snapshot", {"version": "1", "models": [], "hosts": [host], "in_flight": []})
    assert narrator.news("host", host) is None
    assert narrator.news("host", {**host, "reachable": False}) == "tower is silent"


def test_a_model_that_starts_again_is_not_said_to_have_failed() -> None:
    assert sentence("engine", engine("starting", failure=FAILURE)) == "local: a is starting"
    assert sentence("engine", engine("failed", failure=FAILURE)) == "local: a is failed: the engine ended"


def test_a_model_that_is_ready_has_no_percent() -> None:
    switch = {"model": "a", "from_models": [], "phase": "ready", "percent": 100.0, "elapsed_s": 2.0, "eta_s": None,
              "failure": None}  # fmt: skip
    assert sentence("switch", {"backend": "local", "switch": switch}) == "local: switch to a: ready after 2.0 s"


def test_models_of_other_servers_are_counted_apart() -> None:
    states = ("loaded", "unloaded", "available", "unavailable")
    told = sentence("snapshot", {"version": "1", "models": [{"state": each} for each in states], "in_flight": []})
    assert told == "4 models, 1 loaded, 1 available elsewhere, 1 unavailable; 0 requests in progress"


def test_of_many_models_the_first_are_named_and_the_one_that_was_meant() -> None:
    told = unknown_model("m29x", [f"m{number}" for number in range(30)])
    assert "did you mean m29?" in told
    assert told.endswith("m18, m19 and 10 more, see `hostler models`")


def test_a_hop_that_is_left_alone_says_for_how_long() -> None:
    hop = {"backend": "cloud", "name_there": "m", "local": False, "words": "is paused after failures"}
    hops = [{**hop, "retry_in_s": 12.2}, {**hop, "words": "", "retry_in_s": 0.0}]
    assert [row[4] for row in route_rows({"hops": hops, "first": "cloud"})] == [
        "is paused after failures (for another 12 s)",
        "would answer",
    ]
