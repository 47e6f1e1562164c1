"""Errors in llama-server's form."""

from __future__ import annotations

import json

import pytest

from hostler.adapters import errors
from hostler.adapters.errors import BackendRejected, BadRequest, GatewayError
from hostler.adapters.llamacpp.adapter import LlamaCppAdapter

ADAPTER = LlamaCppAdapter()


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.BadRequest("x"), 400, "invalid_request_error"),
        (errors.Unauthenticated("x"), 401, "authentication_error"),
        (errors.Forbidden("x"), 403, "permission_error"),
        (errors.ModelNotFound("x", model="m"), 404, "not_found_error"),
        (errors.MethodNotAllowed("x", allowed=("GET",)), 405, "invalid_request_error"),
        (errors.TooManyRequests("x", retry_after_s=1.2), 429, "rate_limit_error"),
        (errors.ModelUnavailable("x"), 503, "unavailable_error"),
        (errors.BackendUnavailable("x"), 502, "server_error"),
    ],
)
def test_errors_have_llama_servers_form(error: GatewayError, status: int, kind: str) -> None:
    response = ADAPTER.error_response(error)
    assert response.status == status
    assert json.loads(response.body) == {"error": {"code": status, "message": "x", "type": kind}}


def test_errors_have_their_headers() -> None:
    assert ADAPTER.error_response(errors.TooManyRequests("x", retry_after_s=1.2)).headers == (("Retry-After", "2"),)
    assert ADAPTER.error_response(errors.Unauthenticated("x")).headers[1:] == (("WWW-Authenticate", "Bearer"),)
    assert ADAPTER.error_response(errors.MethodNotAllowed("x", allowed=("GET", "HEAD"))).headers[1:] == (
        ("Allow", "GET, HEAD"),
    )


def rejected(status: int) -> BackendRejected:
    return BackendRejected(
        "x",
        backend="b",
        wire="openai",
        backend_status=status,
        headers={"content-type": "application/json"},
        body=b'{"e":1}',
    )


def test_an_engines_error_is_passed_on_as_it_came() -> None:
    response = ADAPTER.error_response(rejected(501))
    assert (response.status, response.body) == (501, b'{"e":1}')


def test_errors_about_the_gateways_own_key_are_not_passed_on() -> None:
    response = ADAPTER.error_response(rejected(401))
    assert response.status == 502
    assert b'"e"' not in response.body


def test_an_unknown_path_without_a_model_is_unavailable() -> None:
    nobody = BadRequest("no model is named and none is running", param="model")
    statuses = {
        one.methods: ADAPTER.error_response(nobody, one).status for one in ADAPTER.operations if "{rest" in one.path
    }
    assert statuses == {("GET",): 404, ("POST", "PUT", "PATCH", "DELETE"): 503}
    assert ADAPTER.error_response(nobody, ADAPTER.operations[0]).status == 400
