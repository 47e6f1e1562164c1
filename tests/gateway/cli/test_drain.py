"""What `hostler drain` prints."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.gateway.cli.drain import drain_lines
from hostler.gateway.cli.host_views import host_state


def result(**fields: Any) -> dict[str, Any]:
    known = {
        "host": "pc",
        "draining": True,
        "remembered": True,
        "serving": 0,
        "loaded": [],
        "leases": [],
        "only_here": {},
    }
    return {**known, **fields}


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({}, ["pc takes no new requests: nothing is in progress there, and nothing loaded."]),
        (
            {"serving": 2, "loaded": ["a", "b"]},
            ["pc takes no new requests: 2 answers in progress and a, b to be unloaded."],
        ),
        (
            {"only_here": {"a": 0, "b": 3}},
            [
                "pc takes no new requests: nothing is in progress there, and nothing loaded.",
                "Nothing else serves a: its requests wait until `hostler drain --undo pc`.",
                "Nothing else serves b: its requests wait until `hostler drain --undo pc`; 3 requests waiting now.",
            ],
        ),
        ({"draining": False}, ["pc is in service again."]),
        (
            {"draining": False, "remembered": False},
            [
                "pc is in service again.",
                "This lasts until its supervisor restarts only: its state could not be saved.",
            ],
        ),
    ],
)
def test_it_says_what_goes_on_and_what_waits(fields: dict[str, Any], lines: list[str]) -> None:
    assert list(drain_lines(result(**fields))) == lines


def test_a_leased_model_is_named_with_its_holder() -> None:
    lease = {"model": "a", "holder": "anna", "expires_at": 0.0}
    first, second = drain_lines(result(loaded=["a"], leases=[lease]))
    assert first == "pc takes no new requests: nothing is in progress there, and nothing loaded."
    assert second.startswith("a stays loaded until ")
    assert second.endswith("it is leased to anna (`hostler lease --list`).")


def test_a_host_is_drained_once_nothing_is_left() -> None:
    host = {"reachable": True, "serving": 0, "host": {"draining": True}, "engines": [{"phase": "cold"}]}
    assert host_state(host) == "drained"
    assert host_state({**host, "serving": 1}) == "draining"
    assert host_state({**host, "engines": [{"phase": "ready"}]}) == "draining"
    assert host_state({**host, "reachable": False}) == "unreachable"
    assert host_state({**host, "host": None}) == "reachable"
