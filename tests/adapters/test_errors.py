"""Statuses, headers and messages of errors."""

from __future__ import annotations

import pytest

from hostler.adapters import errors
from hostler.adapters.errors import (
    BackendBroken,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    GatewayError,
    MethodNotAllowed,
    ModelUnavailable,
    OutOfDescriptors,
    ShuttingDown,
    TooManyRequests,
    Unauthenticated,
    WaitTimeout,
)

FINAL = ("x-should-retry", "false")


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
    assert errors.error_headers(Unauthenticated("x")) == [FINAL, ("WWW-Authenticate", "Bearer")]
    assert errors.error_headers(MethodNotAllowed("x", allowed=("GET", "HEAD"))) == [FINAL, ("Allow", "GET, HEAD")]
    assert errors.error_headers(GatewayError("x")) == [FINAL]


@pytest.mark.parametrize(
    "error",
    [
        *(ModelUnavailable("x"), ShuttingDown("x"), WaitTimeout("x"), TooManyRequests("x"), OutOfDescriptors()),
        *(
            BackendUnavailable("x"),
            BackendTimeout("x"),
            BackendBroken("x"),
            rejected(500),
            rejected(503),
            rejected(429),
        ),
    ],
)
def test_what_may_succeed_later_says_when_to_try_again(error: GatewayError) -> None:
    ((name, seconds),) = errors.error_headers(error)
    assert (name, int(seconds) >= 1) == ("Retry-After", True)


@pytest.mark.parametrize(
    "error",
    [
        *(ModelUnavailable("x", final=True), Unauthenticated("x"), errors.BadRequest("x"), errors.ModelNotFound("x")),
        *(rejected(400), rejected(401), rejected(402), rejected(501), errors.RequestCancelled("x")),
    ],
)
def test_what_fails_again_says_that_a_retry_is_useless(error: GatewayError) -> None:
    headers = errors.error_headers(error)
    assert headers[0] == FINAL and "Retry-After" not in dict(headers)


def test_what_is_over_by_itself_but_not_soon_says_both() -> None:
    error = ModelUnavailable("x", final=True, retry_after_s=3600.0)
    assert errors.error_headers(error) == [FINAL, ("Retry-After", "3600")]


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
    assert "before it was complete" in errors.incomplete_response().message
    assert "protocol does not allow" in errors.invalid_event().message
    assert "protocol does not allow" in errors.invalid_response().message
