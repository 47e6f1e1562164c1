"""The steps of loading a model, as a gateway's events and answer or a supervisor's stream report them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from hostler.gateway.cli.client import AdminClient, AdminTarget, CallFailed
from hostler.gateway.cli.loading import Step, load_steps, print_outcome, print_outcome_as_json, print_steps

Event = tuple[str, dict[str, Any]]


class FakeClient:
    """Sends the events, then answers the order."""

    url = "http://gateway"

    def __init__(self, events: list[Event], answer: dict[str, Any] | CallFailed, *, may_read: bool = True) -> None:
        self._events = events
        self._answer = answer
        self._may_read = may_read
        self._sent = threading.Event()

    def events(self, path: str, query: Any = None, *, body: Any = None) -> Iterator[Event]:
        if not self._may_read:
            self._sent.set()
            raise CallFailed("the key lacks the scope read", 4, 403)
        yield from self._events
        self._sent.set()

    def post(self, path: str, timeout_s: float = 5.0, **body: object) -> dict[str, Any]:
        assert self._sent.wait(20)
        if isinstance(self._answer, CallFailed):
            raise self._answer
        return self._answer


def target(client: FakeClient, *, state: str = "unloaded") -> AdminTarget:
    status = {"version": "1", "hosts": [], "models": [{"name": "a", "aliases": [], "state": state}]}
    return AdminTarget(cast(AdminClient, client), "gateway", status)


def phase(name: str, **more: Any) -> Event:
    switch = {"model": "a", "phase": name, "from_models": [], "phase_seconds": {"starting": 0.5}, "failure": None,
              "percent": None, "eta_s": None, "elapsed_s": 1.0, **more}  # fmt: skip
    return "switch", {"backend": "local", "switch": switch}


def names(steps: Iterator[Step]) -> list[str]:
    return [data.get("phase", kind) for kind, data in steps]


def test_phases_come_before_the_outcome() -> None:
    waiting = ("queue", {"waiting": [{"model": "a", "client": "operator", "position": 2}]})
    other = phase("starting", model="b")
    client = FakeClient([waiting, other, phase("starting"), phase("loading"), phase("ready")], {"state": "loaded"})
    steps = list(load_steps(target(client), "a"))
    assert names(iter(steps)) == ["waiting", "starting", "loading", "ready"]
    assert steps[-1][1]["phase_seconds"] == {"starting": 0.5}


def test_a_key_without_the_scope_read_gets_the_outcome() -> None:
    client = FakeClient([], {"state": "loaded"}, may_read=False)
    assert names(load_steps(target(client), "a")) == ["ready"]


def test_a_failure_has_the_operators_reason_and_the_engines_lines() -> None:
    failure = {"message": "the engine exited: /models/a.gguf is missing", "lines": ["error: no file"]}
    client = FakeClient([phase("failed", failure=failure)], CallFailed("a could not be loaded", 1, 503))
    ((kind, data),) = load_steps(target(client), "a")
    assert kind == "failed"
    assert data["message"] == f"a could not be loaded: {failure['message']}"
    assert data["lines"] == ["error: no file"]


@pytest.mark.parametrize("status", [0, 401, 403, 404])
def test_an_order_that_was_not_accepted_is_an_error(status: int) -> None:
    client = FakeClient([], CallFailed("no", 4, status))
    with pytest.raises(CallFailed):
        list(load_steps(target(client), "a"))


def test_a_supervisor_streams_its_steps() -> None:
    events: list[Event] = [
        ("phase", {"phase": "starting"}),
        ("failed", {"error": {"message": "out of memory", "failure": {"lines": ["oom"]}}}),
    ]
    own = {"profiles": [], "models": [], "exclusive": True}
    supervisor = AdminTarget(cast(AdminClient, FakeClient(events, {})), "supervisor", own)
    steps = list(load_steps(supervisor, "a"))
    assert steps == [events[0], ("failed", {"model": "a", "message": "out of memory", "lines": ["oom"]})]


READY: Step = ("ready", {"model": "a", "elapsed_s": 2.0, "phase_seconds": {"starting": 0.5, "saving": 0.0}})
STARTING: Step = ("phase", {"phase": "starting", "from_models": []})
STOPPING: Step = ("phase", {"phase": "stopping", "from_models": ["b", "c"]})


def test_steps_are_printed_as_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_steps("a", iter([STOPPING, STARTING, STARTING, READY])) == READY
    out, err = capsys.readouterr()
    assert err == "a: stopping b, c\na: starting\n"
    assert out == "a is ready after 2.0 s (starting 500 ms).\n"


def test_only_the_outcome_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome("a", iter([STARTING, READY]))
    assert capsys.readouterr() == ("a is ready after 2.0 s (starting 500 ms).\n", "")
    print_outcome("a", iter([("failed", {"message": "no", "lines": ["one\x07", "two"]})]))
    assert capsys.readouterr() == ("", "  one?\n  two\n")


def test_a_stream_without_an_outcome_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    kind, data = print_outcome_as_json("a", iter([]))
    assert (kind, data["message"]) == ("failed", "the stream ended before the model was ready")
    assert '"state": "failed"' in capsys.readouterr().out
