"""The failure policy: how errors are classified, and how long to wait."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.errors import (
    AnswerTooLarge,
    BackendBroken,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    BadRequest,
    GatewayError,
    ModelUnavailable,
    TooManyRequests,
    WaitTimeout,
)
from hostler.gateway.backend_settings import BackendSettings
from hostler.gateway.backends.failure_policy import (
    DESCRIPTIONS,
    FAILURE_RULES,
    certain_tokens,
    classify_error,
    may_be_request_fault,
    min_prompt_tokens,
    rejection_cause,
    retry_after,
)


def rejected(status: int, error: Any = None, after: float | None = None) -> BackendRejected:
    body = json.dumps({"error": error}).encode() if error is not None else b"<html>"
    return BackendRejected(
        "x", backend="b", wire="openai", backend_status=status, headers={}, body=body, retry_after_s=after
    )


@pytest.mark.parametrize(("error", "outcome"), [
    (BackendUnavailable("x"), "unreachable"),
    (BackendUnavailable("x", timed_out=True), "connect_timeout"),
    (BackendTimeout("x"), "first_byte_timeout"),
    (BackendBroken("x"), "server_error"),
    (AnswerTooLarge(9), "rejected"),
    (BackendBroken("x", backend_status=402), "payment_required"),
    (BackendBroken("x", backend_status=429), "busy"),
    (BackendBroken("x", backend_status=400), "rejected"),
    (rejected(500), "server_error"),
    (rejected(302), "server_error"),
    (rejected(503), "server_error"),
    (rejected(503, after=1.0), "busy"),
    (rejected(503, {"message": "no slot available", "type": "unavailable_error"}), "busy"),
    (rejected(503, {"message": "Loading model", "type": "unavailable_error"}), "loading"),
    (rejected(402), "payment_required"),
    (rejected(402, after=1.0), "busy"),
    (rejected(429, {"message": "x", "type": "insufficient_quota", "code": "insufficient_quota"}), "payment_required"),
    (rejected(429, {"message": "x", "type": "requests", "code": "billing_hard_limit_reached"}), "payment_required"),
    (rejected(429, {"message": "x", "type": "billing_error"}), "payment_required"),
    (rejected(429, {"message": "x", "type": "insufficient_quota"}, after=1.0), "busy"),
    (rejected(429, {"message": "x", "type": "rate_limit_error"}), "busy"),
    (rejected(403), "auth_failed"),
    (rejected(403, {"metadata": {"reasons": ["violence"]}}), "rejected"),
    (rejected(413), "rejected"),
    (WaitTimeout("x"), "loading"),
    (TooManyRequests("x"), "model_unavailable"),
    (ModelUnavailable("x"), "model_unavailable"),
    (BadRequest("x"), None),
])  # fmt: skip
def test_errors_before_the_first_token_are_classified(error: GatewayError, outcome: str | None) -> None:
    assert classify_error(error, committed=False) == outcome


@pytest.mark.parametrize(
    "error", [BackendTimeout("x"), BackendBroken("x", backend_status=429), BackendUnavailable("x")]
)
def test_any_failure_after_the_first_token_is_broken(error: GatewayError) -> None:
    assert classify_error(error, committed=True) == "broken"


@pytest.mark.parametrize(("error", "fault"), [
    (rejected(400, {"type": "exceed_context_size_error", "message": "x"}), "context"),
    (rejected(400, {"code": "context_length_exceeded"}), "context"),
    (rejected(400, {"message": "This endpoint's maximum context length is 4096 tokens"}), "context"),
    (rejected(400, {"message": "prompt is too long: 9 tokens > 8 maximum"}), "context"),
    (rejected(413), "context"),
    (rejected(404, {"message": "No endpoints found"}), "model"),
    (rejected(400, {"code": "model_not_found"}), "model"),
    (rejected(403, {"metadata": {"flagged_input": "x"}}), "contents"),
    (rejected(400, {"message": "temperature is wrong"}), "request"),
    (rejected(400, "text"), "request"),
    (rejected(422), "request"),
    (BadRequest("x"), "request"),
])  # fmt: skip
def test_the_cause_of_a_rejection_is_recognised(error: GatewayError, fault: str) -> None:
    assert rejection_cause(error) == fault


@pytest.mark.parametrize(("status", "error", "after", "may_be"), [
    (500, "image input is not supported", None, True), (502, {"message": "x"}, None, True), (503, "x", None, True),
        (503, "The server is busy", None, False), (529, {"message": "x", "type": "overloaded_error"}, None, False),
        (503, {"message": "no slot available", "type": "unavailable_error"}, None, False), (408, "x", None, True), (409, "x", None, True),
        (425, "x", None, True), (408, None, None, False), (429, "x", None, False),
    (500, None, None, False), (500, {"message": ""}, None, False), (503, "busy", 1.0, False), (400, "x", None, False),
    (403, "x", None, True), (403, None, None, False), (401, "x", None, False), (501, "x", None, False), (503, {"message": "Loading model", "type": "unavailable_error"}, None, False),
    (503, {"message": "x", "metadata": {"retryable": False}}, None, False),
])  # fmt: skip
def test_an_error_with_a_reason_may_be_the_requests_fault(
    status: int, error: Any, after: float | None, may_be: bool
) -> None:
    body = rejected(status, error, after).body
    assert may_be_request_fault(status, body, retry_after=after is not None) is may_be


def test_a_request_fault_is_a_rejection_whatever_its_status() -> None:
    for status in (500, 502, 503):
        error = rejected(status, "Compute error.")
        error.request_fault = True
        assert (classify_error(error, committed=False), rejection_cause(error)) == ("rejected", "engine")


def test_runs_of_a_character_count_little() -> None:
    assert certain_tokens(["many words, " * 100]) == 150
    assert certain_tokens([" " * 10_000, "=" * 10_000]) == 0
    assert certain_tokens(["\ud800" * 2]) == 0
    assert certain_tokens(["=" * 30_000_000]) == 0


def test_texts_beyond_the_limit_are_not_counted_to_their_end() -> None:
    text = "many words, " * 100_000
    assert certain_tokens([text, text]) == 300_000
    assert 1000 < certain_tokens([text, text], limit=1000) < 10_000
    assert certain_tokens([text], limit=1_000_000) == 150_000


def test_every_outcome_has_a_description() -> None:
    assert set(FAILURE_RULES) <= set(DESCRIPTIONS)


@pytest.mark.parametrize(("value", "seconds"), [
    ("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("1e99", 86400.0), ("nan", None), ("soon", None), ("", None),
    ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0), ("Wed, 31 Dec 1969 23:59:00 GMT", 0.0),
])  # fmt: skip
def test_retry_after_is_parsed_in_both_forms(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}, 10.0) == seconds


@pytest.mark.parametrize(("value", "seconds"), [
    ("2500", 2.5), ("0", 0.0), ("1e12", 86400.0), ("-1", 9.0), ("nan", 9.0), ("inf", 9.0), ("soon", 9.0), ("", 9.0),
])  # fmt: skip
def test_milliseconds_are_more_exact_than_retry_after(value: str, seconds: float) -> None:
    assert retry_after({"retry-after": "9", "retry-after-ms": value}, 10.0) == seconds


@pytest.mark.parametrize(("reset", "seconds"), [
    ("1700000042000", 42.0), ("1700000042", 42.0), ("1699999999000", None), ("1800000000000", None), ("soon", None),
    ("", None), ("30", None),
])  # fmt: skip
def test_the_rate_limit_reset_is_used_without_retry_after(reset: str, seconds: float | None) -> None:
    now = 1700000000.0
    body = json.dumps({"error": {"code": 429, "metadata": {"headers": {"X-RateLimit-Reset": reset}}}}).encode()
    assert retry_after({}, now, body) == seconds
    assert retry_after({"x-ratelimit-reset": reset}, now) == seconds
    assert retry_after({"retry-after": "7"}, now, body) == 7.0
    for odd in (b"", b"[]", b'{"error":{"metadata":{"headers":[1]}}}', b'{"error":{"metadata":1}}', b"\xff"):
        assert retry_after({}, now, odd) is None


def test_the_tokens_of_a_prompt_are_never_overestimated() -> None:
    text = json.dumps({"messages": [{"role": "user", "content": "word " * 20_000}]}).encode()
    assert 5_000 < min_prompt_tokens(text) <= 20_000
    assert min_prompt_tokens(b'{"short": 1}') == 0
    assert min_prompt_tokens(text + b"data:image/png;base64,AAAA") == 0
    escaped = json.dumps({"messages": [{"content": "\n" * 20_000}]}).encode()
    assert min_prompt_tokens(escaped) <= 20_000


@pytest.mark.parametrize(("url", "inside"), [
    ("http://127.0.0.1:1", True), ("http://192.168.1.5:1", True), ("http://10.0.0.1", True), ("http://[::1]:1", True),
    ("http://[fd00::1]:1", True), ("http://169.254.1.1", True), ("http://172.31.0.1", True), ("http://localhost:1", True), ("http://[fe80::1]", True),
    ("http://[::ffff:10.0.0.1]", True), ("http://nas:1", True), ("http://my-nas_2", True), ("http://NAS.LAN", True),
    ("http://nas.local", True), ("http://nas.home.arpa", True), ("http://nas.internal", True),
    ("https://openrouter.ai/api/v1", False), ("http://8.8.8.8", False), ("http://nas.lan", True),
    ("http://100.64.0.1", False), ("http://172.32.0.1", False), ("http://0.0.0.0", False), ("http://192.0.2.1", False),
    ("http://[::ffff:8.8.8.8]", False), ("http://134744072", False), ("http://0x08080808", False), ("http://8.8", False),
    ("http://openrouter.ai.", False), ("http://ai.", False), ("http://lan", True), ("http://lan.example", False),
    ("http://local.example", False), ("http://[2606:4700::1]", False), ("http://localhost.example", False),
])  # fmt: skip
def test_a_backend_is_local_only_if_its_address_cannot_be_elsewhere(url: str, inside: bool) -> None:
    assert BackendSettings(kind="openai", url=url).is_local is inside
    assert BackendSettings(kind="supervisor", url=url).is_local
    assert BackendSettings(kind="openai", url=url, local=not inside).is_local is not inside


def test_an_error_body_that_is_not_text_has_no_fields() -> None:
    refused = BackendRejected(
        "x", backend="b", wire="openai", backend_status=400, headers={}, body=b'{"error":{"message":"\xff"}}'
    )
    assert rejection_cause(refused) == "request"
