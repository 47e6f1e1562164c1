"""The client's error when no hop answered, and what of a backend's error it may see."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.adapters.errors import (
    DEFAULT_RETRY_AFTER_S,
    AnswerTooLarge,
    BackendBroken,
    BackendError,
    BackendRejected,
    BackendUnavailable,
    Forbidden,
    ModelUnavailable,
    TooManyRequests,
    client_status,
    is_final,
)
from hostler.gateway.backends.chain_errors import (
    FailedHop,
    chain_error,
    public_error,
    summary,
)
from hostler.gateway.backends.circuit_breaker import BreakerRules, CircuitBreakers
from hostler.gateway.backends.failure_policy import AttemptResult
from hostler.gateway.backends.hop import Hop

SECRET = b'{"error": {"message": "https://internal.example/key"}}'


def hop(name: str, **fields: Any) -> Hop:
    return Hop(name=name, breakers=CircuitBreakers(BreakerRules(), lambda: 0.0), **fields)


def rejected(status: int, body: bytes = SECRET) -> BackendRejected:
    return BackendRejected("x", backend="a", wire="openai", backend_status=status, headers={}, body=body)


def failed(name: str, reason: Any, error: Any = None, retry_after_s: float | None = None, **fields: Any) -> FailedHop:
    return FailedHop(hop=hop(name, **fields), reason=reason, error=error, retry_after_s=retry_after_s)


def test_the_summary_names_each_hop_and_its_reason() -> None:
    assert summary([failed("a", "unreachable"), failed("b", "circuit_open")]) == "a: unreachable; b: circuit_open"


def test_the_error_describes_every_hop_and_names_the_earliest_retry() -> None:
    error = chain_error(
        "m",
        [
            failed("a", "unreachable", BackendUnavailable("x"), 9.0),
            failed("b", "circuit_open", retry_after_s=4.0),
        ],
    )
    assert isinstance(error, ModelUnavailable)
    assert error.message == (
        "no backend could answer for m: a cannot be reached (unreachable); b is paused after failures (circuit_open)"
    )
    assert error.retry_after_s == 4.0


def test_without_a_better_value_the_client_may_retry_soon_unless_it_is_pointless() -> None:
    assert (
        chain_error("m", [failed("a", "unreachable", BackendUnavailable("x"))]).retry_after_s == DEFAULT_RETRY_AFTER_S
    )
    assert chain_error("m", [failed("a", "too_long"), failed("b", "excluded")]).retry_after_s is None


@pytest.mark.parametrize("limit", [9, 64 * 1024 * 1024])
def test_an_answer_that_is_too_large_says_so(limit: int) -> None:
    error = chain_error("m", [failed("a", "rejected", AnswerTooLarge(limit)), failed("b", "excluded")])
    assert error.message.startswith("the answer is larger than ")
    assert ("9 bytes" if limit == 9 else "64 MiB") in error.message
    assert is_final(error)


def test_busy_backends_are_429() -> None:
    error = chain_error("m", [failed("a", "busy", rejected(429), 7.0), failed("b", "excluded")])
    assert isinstance(error, TooManyRequests)
    assert error.message.startswith("all backends for m are busy: a is busy (busy)")
    assert error.retry_after_s == 7.0


def test_a_full_queue_is_described_as_such() -> None:
    full = TooManyRequests("pc is busy and its queue is full", retry_after_s=3.0)
    assert chain_error("m", [failed("pc", "model_unavailable", full)]) is full
    both = chain_error(
        "m", [failed("pc", "model_unavailable", full), failed("b", "unreachable", BackendUnavailable("x"))]
    )
    assert "the queue of pc is full (model_unavailable)" in both.message


def test_a_local_only_request_without_a_local_backend_is_forbidden() -> None:
    error = chain_error("m", [failed("cloud", "non_local", local=False)])
    assert isinstance(error, Forbidden)
    assert "must stay local" in error.message


def test_a_request_that_all_rejected_gets_the_first_rejection() -> None:
    first = rejected(422)
    assert chain_error("m", [failed("a", "rejected", first), failed("b", "rejected", rejected(400))]) is first


def engine_fault() -> BackendRejected:
    error = rejected(500)
    error.request_fault = True
    return error


@pytest.mark.parametrize(
    ("reason", "paused_by"),
    [
        ("non_local", None),
        ("excluded", None),
        ("unsupported", None),
        ("too_long", None),
        ("budget_exhausted", None),
        ("auth_failed", None),
        ("payment_required", None),
        ("unreachable", None),
        ("connect_timeout", None),
        ("circuit_open", "auth_failed"),
        ("circuit_open", "payment_required"),
        ("circuit_open", "unreachable"),
        ("circuit_open", "connect_timeout"),
    ],
)
def test_a_requests_own_fault_keeps_its_words_beside_hops_that_cannot_serve_it(reason: Any, paused_by: Any) -> None:
    fault = engine_fault()
    other = FailedHop(hop=hop("b"), reason=reason, retry_after_s=9.0, paused_by=paused_by)
    for hops in ([failed("a", "rejected", fault), other], [other, failed("a", "rejected", fault)]):
        error = chain_error("m", hops)
        assert error is fault
        assert client_status(error) == 400
        assert is_final(error)


@pytest.mark.parametrize("reason", ["busy", "loading", "server_error", "first_byte_timeout", "budget_reserved"])
def test_a_requests_own_fault_is_not_final_while_another_hop_may_serve_it_later(reason: Any) -> None:
    error = chain_error("m", [failed("a", "rejected", engine_fault()), failed("b", reason)])
    assert isinstance(error, ModelUnavailable)
    assert not error.final


def test_a_missing_model_is_described_beside_a_hop_that_failed() -> None:
    missing = failed("a", "rejected", rejected(404))
    both = chain_error("m", [missing, failed("b", "auth_failed", rejected(401))])
    assert isinstance(both, ModelUnavailable)
    assert "a rejected the request (rejected); b rejected the API key" in both.message
    assert chain_error("m", [missing, failed("b", "excluded")]) is missing.error


@pytest.mark.parametrize(
    ("status", "local", "passed_on"), [(400, True, True), (501, True, True), (500, True, False), (400, False, False)]
)
def test_only_a_local_backends_rejection_is_passed_on(status: int, local: bool, passed_on: bool) -> None:
    error = rejected(status)
    shown = public_error(error, hop("a", local=local))
    assert (shown is error) is passed_on
    if not passed_on:
        assert isinstance(shown, BackendError)
        assert "internal" not in shown.message
        assert not getattr(shown, "body", b"")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"code": "context_length_exceeded"}}', "maximum context length of the model at cloud"),
        (b'{"error": {"code": "model_not_found"}}', "cloud does not have the model"),
        (SECRET, "cloud rejected the request as invalid"),
    ],
)
def test_a_remote_backends_rejection_is_described_by_its_cause(body: bytes, message: str) -> None:
    shown = public_error(rejected(400, body), hop("cloud", local=False))
    assert isinstance(shown, BackendRejected)
    assert message in shown.message
    assert (shown.backend_status, shown.wire) == (400, "")


def test_a_broken_answer_is_described_without_the_backends_words() -> None:
    shown = public_error(BackendBroken("it said a secret", backend="a"), hop("a"))
    assert shown.message == "a broke off its answer"
    own = BackendBroken("the engine crashed", backend="pc")
    assert public_error(own, hop("pc", supervised=True)) is own


def final_and_retry(*hops: FailedHop) -> tuple[bool, float | None]:
    error = chain_error("m", hops)
    return error.final, error.retry_after_s


def test_an_error_is_final_only_if_every_hops_is() -> None:
    broken = failed("pc", "model_unavailable", ModelUnavailable("it exited", final=True), supervised=True)
    wrong_key = failed("a", "auth_failed", rejected(401), 900.0)
    paused = failed("b", "circuit_open", retry_after_s=4.0)
    assert final_and_retry(broken, wrong_key) == (True, None)
    assert final_and_retry(broken, wrong_key, paused) == (False, 4.0)
    assert final_and_retry(broken, failed("b", "unreachable", BackendUnavailable("x"))) == (
        False,
        DEFAULT_RETRY_AFTER_S,
    )


def test_a_circuit_that_a_wrong_key_opened_is_final_and_one_after_failures_is_not() -> None:
    causes: tuple[AttemptResult, ...] = ("auth_failed", "payment_required", "server_error")
    hops = [FailedHop(hop=hop("a"), reason="circuit_open", retry_after_s=30.0, paused_by=cause) for cause in causes]
    assert [final_and_retry(each) for each in hops] == [(True, None), (True, None), (False, 30.0)]
    assert "a is paused after failures: it rejected the API key (circuit_open)" in chain_error("m", hops[:1]).message


@pytest.mark.parametrize("reason", ["circuit_open", "busy", "budget_exhausted"])
def test_a_pause_that_is_too_long_to_wait_for_is_final_but_says_when_it_ends(reason: Any) -> None:
    error = rejected(429) if reason == "busy" else None
    assert final_and_retry(failed("a", reason, error, 3600.0)) == (True, 3600.0)


def test_what_a_supervisor_says_of_a_model_is_kept_beside_other_hops() -> None:
    broken = failed("pc", "model_unavailable", ModelUnavailable("m: exit code 3", final=True), supervised=True)
    assert "m: exit code 3 (model_unavailable)" in chain_error("m", [broken, failed("a", "circuit_open")]).message


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_final_and_says_what_to_correct(status: int) -> None:
    error = chain_error("m", [failed("a", "server_error", rejected(status, b""))])
    assert is_final(error) and error.retry_after_s is None
    assert "a redirects to another address, which is not followed: correct its URL" in error.message
    other = chain_error(
        "m", [failed("a", "server_error", rejected(status, b"")), failed("b", "server_error", BackendError("x"))]
    )
    assert not is_final(other)
