"""Statuses, headers and messages of errors."""

from __future__ import annotations

import pytest

from hostler.adapters import errors
from hostler.adapters.errors import BackendRejected, GatewayError, MethodNotAllowed, TooManyRequests, Unauthenticated


def rejected(status: int) -> BackendRejected:
    return BackendRejected("no", backend="b", wire="openai", backend_status=status, headers={}, body=b"")


@pytest.mark.parametrize(
    ("error", "status"),
    [(GatewayError("x"), 500), (rejected(422), 422), (rejected(401), 502), (rejected(402), 502), (rejected(503), 502)],
)
def test_only_the_clients_own_mistakes_keep_a_backends_status(error: GatewayError, status: int) -> None:
    assert errors.client_status(error) == status


def test_each_error_has_its_headers() -> None:
    assert errors.error_headers(TooManyRequests("x", retry_after_s=0.2)) == [("Retry-After", "1")]
    assert errors.error_headers(Unauthenticated("x")) == [("WWW-Authenticate", "Bearer")]
    assert errors.error_headers(MethodNotAllowed("x", allowed=("GET", "HEAD"))) == [("Allow", "GET, HEAD")]
    assert errors.error_headers(GatewayError("x")) == []


def test_untrusted_text_is_truncated_and_escaped() -> None:
    assert errors.printable("a\x1bb") == "a\\x1bb"
    assert errors.printable("x" * 300, 10) == "x" * 7 + "..."


@pytest.mark.parametrize("message", [None, "", " ", 7])
def test_a_reported_error_without_a_message_has_one(message: object) -> None:
    assert errors.reported_error(message).message == "The backend reported an error in the middle of its response."


def test_a_reported_error_keeps_its_message_and_status() -> None:
    error = errors.reported_error("out of\nmemory" + "!" * 600, backend_status=507)
    assert error.message.startswith("The backend reported an error: out of memory!!")
    assert len(error.message) < 600
    assert error.backend_status == 507


def test_each_way_to_break_off_has_its_message() -> None:
    assert errors.truncated_response(3, 9).message.endswith("after 3 of 9 bytes.")
    assert errors.oversized_response(9).message.endswith("larger than 9 bytes.")
    assert "before it was complete" in errors.incomplete_response().message
    assert "protocol does not allow" in errors.invalid_event().message
    assert "protocol does not allow" in errors.invalid_response().message
