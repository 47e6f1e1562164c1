"""What is done for the next load while the answers of other models end."""

from __future__ import annotations

import pytest
from fakes.scheduler_host import A, B, C, SchedulerHost, loaded_host, profile, status

from hostler.supervisor.contract import Failure
from hostler.supervisor.scheduling.types import PrepareNext


def prepared(host: SchedulerHost) -> list[tuple[str | None, bool]]:
    return [(each.model, each.start) for each in host.prepared]


def busy_host(**rules: float) -> tuple[SchedulerHost, int]:
    """A host whose model `a` answers, and the ticket of that answer."""
    host = loaded_host(A, B, C, **rules)
    return host, host.request("a")


def test_the_next_model_is_prepared_while_an_answer_runs() -> None:
    host, answer = busy_host(patience_s=60.0)
    host.request("b")
    host.request("b")
    assert prepared(host) == [("b", False)] and not host.switches
    host.release(answer)
    assert host.loads() == ["b"]
    host.finish_switch()
    assert prepared(host) == [("b", False)]


def test_a_free_host_prepares_nothing() -> None:
    host = loaded_host(A, B)
    host.request("b")
    assert host.loads() == ["b"] and not host.prepared


def test_nothing_is_prepared_any_more_once_nothing_waits() -> None:
    host, _ = busy_host(patience_s=60.0)
    host.cancel(host.request("b"))
    assert prepared(host) == [("b", False), (None, False)]


def test_another_next_model_replaces_the_prepared_one() -> None:
    host, _ = busy_host(patience_s=60.0)
    first = host.request("b")
    host.request("c")
    host.cancel(first)
    assert prepared(host) == [("b", False), ("c", False)]


def test_it_may_be_started_so_early_that_it_is_ready_when_patience_ends() -> None:
    host = loaded_host(A, profile("b", load_s=4.0), patience_s=10.0)
    host.request("a")
    host.request("b")
    host.advance_to(5.9)
    assert prepared(host) == [("b", False)]
    host.advance_to(6.0)
    assert prepared(host) == [("b", False), ("b", True)]


def test_it_is_not_started_before_the_loaded_model_may_leave() -> None:
    host, _ = busy_host(patience_s=0.0, min_residency_s=30.0)
    host.request("b")
    host.advance_to(29.9)
    assert prepared(host) == [("b", False)]
    host.advance_to(30.0)
    assert prepared(host) == [("b", False), ("b", True)]


def overlapped_host() -> tuple[SchedulerHost, int, int]:
    """A host whose supervisor may start `b` beside `a`, the ticket that `a` answers, and the one that waits for `b`."""
    host, answer = busy_host(patience_s=0.0)
    waiting = host.request("b")
    assert prepared(host)[-1] == ("b", True)
    return host, answer, waiting


def test_a_model_that_was_started_early_answers_at_once_and_the_other_stops_after_its_answer() -> None:
    host, answer, waiting = overlapped_host()
    host.note(host.scheduler.loaded(None, "b", host.now))
    assert host.using == {answer: "a", waiting: "b"} and not host.unloads
    later = host.request("a")
    host.release(answer)
    assert host.unloads == ["a"] and later in host.waiting
    host.note(host.scheduler.unloaded("a", host.now))
    host.release(waiting)
    assert host.loads() == ["a"]


def test_a_model_that_was_started_early_is_seen_in_a_snapshot_as_well() -> None:
    host, answer, waiting = overlapped_host()
    host.note(host.scheduler.apply_snapshot(status(A, B, C, states={"a": "ready", "b": "ready"}), host.now))
    assert host.using == {answer: "a", waiting: "b"}
    host.release(answer)
    assert host.unloads == ["a"]


def test_a_model_that_was_started_early_for_nothing_is_stopped() -> None:
    host, answer, waiting = overlapped_host()
    host.cancel(waiting)
    assert host.prepared[-1] == PrepareNext(model=None)
    host.note(host.scheduler.loaded(None, "b", host.now))
    assert host.unloads == ["b"] and host.using == {answer: "a"}


def test_a_load_that_was_adopted_ends_the_overlap() -> None:
    host, answer, waiting = overlapped_host()
    host.note(host.scheduler.apply_snapshot(status(A, B, C, states={"a": "ready", "b": "starting"}), host.now))
    assert host.switches[-1].evict == ()
    host.finish_switch()
    assert waiting in host.using
    host.release(answer)
    assert host.unloads == ["a"]


def test_the_loaded_model_has_left_before_the_other_was_ready() -> None:
    host, answer, waiting = overlapped_host()
    host.release(answer)
    assert host.switches[-1].evict == ("a",)
    host.note(host.scheduler.loaded(None, "b", host.now))
    assert waiting in host.waiting, "its switch reports"
    host.finish_switch()
    assert waiting in host.using and not host.unloads


def test_pinned_models_stay_beside_one_that_was_started_early() -> None:
    host = loaded_host(A, B, profile("p", pinned=True), patience_s=0.0)
    host.note(host.scheduler.loaded(None, "p", 0.0))
    host.request("a")
    host.request("p")
    host.request("b")
    host.note(host.scheduler.loaded(None, "b", host.now))
    for ticket in [number for number, model in host.using.items() if model != "b"]:
        host.release(ticket)
    assert host.unloads == ["a"]


@pytest.mark.parametrize("retry_after_s", [None, 30.0])
def test_a_failed_preparation_costs_no_loaded_model(retry_after_s: float | None) -> None:
    host, answer, waiting = overlapped_host()
    failure = Failure(kind="source_unavailable", message="no such file", retry_after_s=retry_after_s)
    host.note(host.scheduler.prepare_failed("b", host.now, failure))
    assert host.refused[waiting].failure == failure
    host.release(answer)
    assert not host.switches and not host.unloads
    again = host.request("b")
    assert (again in host.refused) is (retry_after_s is not None)


def test_the_failure_of_what_is_no_longer_prepared_is_ignored() -> None:
    host, answer, waiting = overlapped_host()
    host.release(answer)
    host.note(host.scheduler.prepare_failed("b", host.now, Failure(kind="exited", message="late")))
    assert waiting in host.waiting
