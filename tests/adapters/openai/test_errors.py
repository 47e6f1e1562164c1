"""Errors in OpenAI's form."""

from __future__ import annotations

import json

import pytest

from hostler.adapters.errors import (
    BackendRejected,
    BackendTimeout,
    BadRequest,
    Forbidden,
    GatewayError,
    MethodNotAllowed,
    ModelNotFound,
    ModelUnavailable,
    RateLimited,
    RequestTooLarge,
    TooManyRequests,
    Unauthenticated,
)
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.errors import responses_error_events


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (BadRequest("x"), 400, "invalid_request_error", "invalid_request"),
        (Unauthenticated("x"), 401, "authentication_error", "invalid_api_key"),
        (Forbidden("x"), 403, "permission_error", "forbidden"),
        (ModelNotFound("x"), 404, "invalid_request_error", "model_not_found"),
        (RequestTooLarge("x"), 413, "invalid_request_error", "request_too_large"),
        (TooManyRequests("x"), 429, "rate_limit_error", "queue_full"),
        (RateLimited("x"), 429, "rate_limit_error", "rate_limited"),
        (ModelUnavailable("x"), 503, "server_error", "model_not_available"),
        (ModelUnavailable("x", final=True), 503, "server_error", "model_not_available"),
        (BackendTimeout("x"), 504, "server_error", "backend_timeout"),
    ],
)
def test_each_error_has_its_status_and_type(
    adapter: OpenAIAdapter, error: GatewayError, status: int, kind: str, code: str
) -> None:
    response = adapter.error_response(error)
    body = json.loads(response.body)["error"]
    assert (response.status, body["type"], body["code"], body["message"]) == (status, kind, code, "x")
    assert set(body) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.1, "2"), (60, "60")])
def test_retry_after_is_rounded_up(adapter: OpenAIAdapter, seconds: float, header: str) -> None:
    assert ("Retry-After", header) in adapter.error_response(TooManyRequests("x", retry_after_s=seconds)).headers


def test_challenges_and_allowed_methods_are_in_the_headers(adapter: OpenAIAdapter) -> None:
    assert adapter.error_response(Unauthenticated("x")).headers[1:] == (("WWW-Authenticate", "Bearer"),)
    assert adapter.error_response(MethodNotAllowed("x", allowed=("GET", "POST"))).headers[1:] == (
        ("Allow", "GET, POST"),
    )


def rejected(status: int, wire: str = "openai") -> BackendRejected:
    return BackendRejected(
        "the backend refused the request",
        backend="main", wire=wire, backend_status=status, headers={"Content-Type": "application/json; charset=utf-8"}, body=b'{"error":{"message":"secret"}}',
    )  # fmt: skip


@pytest.mark.parametrize("status", [400, 404, 422, 501])
@pytest.mark.parametrize("wire", ["openai", "llamacpp"])
def test_an_engines_error_is_passed_on_unchanged(adapter: OpenAIAdapter, status: int, wire: str) -> None:
    response = adapter.error_response(rejected(status, wire))
    assert (response.status, response.body) == (status, b'{"error":{"message":"secret"}}')
    assert response.media_type == "application/json; charset=utf-8"


def test_an_error_of_another_protocol_is_translated(adapter: OpenAIAdapter) -> None:
    response = adapter.error_response(rejected(400, "anthropic"))
    assert (response.status, json.loads(response.body)["error"]["message"]) == (400, "secret")


@pytest.mark.parametrize(("error", "status"), [(rejected(500, "ollama"), 502), (rejected(401), 502)])
def test_account_errors_and_failures_are_not_passed_on(
    adapter: OpenAIAdapter, error: BackendRejected, status: int
) -> None:
    response = adapter.error_response(error)
    assert response.status == status
    assert b"secret" not in response.body


def test_control_characters_are_escaped(adapter: OpenAIAdapter) -> None:
    message = json.loads(adapter.error_response(BadRequest("a\x00b\x1b[31m\u202e" + "x" * 5000)).body)["error"][
        "message"
    ]
    assert message.startswith("a\\x00b\\x1b[31m\\u202exx")
    assert len(message) < 2100


@pytest.mark.parametrize(
    ("label", "body", "sent"),
    [
        ("text/plain", b'{"error":{"message":"x"}}', "application/json"),
        ("application/json; charset=utf-8", b'{"error":{"message":"x"}}', "application/json; charset=utf-8"),
        ("text/html", b"<html>", "text/html"),
    ],
)
def test_an_error_under_a_wrong_label_gets_the_right_one(
    adapter: OpenAIAdapter, label: str, body: bytes, sent: str
) -> None:
    error = BackendRejected(
        "x", backend="b", wire="openai", backend_status=400, headers={"content-type": label}, body=body
    )
    response = adapter.error_response(error)
    assert (response.media_type, response.body) == (sent, body)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ModelUnavailable("x"), 503, "server_error"),
        (ModelUnavailable("x", final=True), 400, "invalid_prompt"),
        (TooManyRequests("x"), 429, "rate_limit_exceeded"),
        (rejected(401, "ollama"), 400, "invalid_prompt"),
        (BadRequest("x"), 400, "invalid_prompt"),
        (Unauthenticated("x"), 401, "invalid_prompt"),
    ],
)
def test_final_errors_have_what_clients_of_the_responses_api_do_not_retry(
    adapter: OpenAIAdapter, error: GatewayError, status: int, code: str
) -> None:
    operation = next(each for each in adapter.operations if each.name == "responses")
    assert adapter.error_response(error, operation).status == status
    assert b'"code":"%s"' % code.encode() in responses_error_events(error, {"id": "resp_1"})
