"""Errors as HTTP bodies, and back."""

from __future__ import annotations

import msgspec
import pytest

from hostler.supervisor.contract import (
    Failure,
    FailureKind,
    SupervisorError,
    SupervisorUnreachable,
    UnknownProfile,
)
from hostler.supervisor.schemas import SupervisorErrorBody, decode_error, encode_error

FAILURE = Failure(kind="out_of_memory", message="no memory", lines=("a", "b"), exit_code=1, retry_after_s=2.5)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SupervisorError(FAILURE), 503),
        (UnknownProfile('no profile "x"'), 404),
        (SupervisorUnreachable("gone"), 503),
    ],
)
def test_an_error_survives_the_way_over_http(error: Exception, status: int) -> None:
    encoded, body = encode_error(error)
    assert encoded == status
    decoded = decode_error(msgspec.json.decode(msgspec.json.encode(body), type=SupervisorErrorBody))
    assert (type(decoded), str(decoded)) == (type(error), str(error))
    assert getattr(decoded, "failure", None) == getattr(error, "failure", None)


@pytest.mark.parametrize(
    ("kind", "status"), [("bad_argument", 422), ("does_not_fit", 422), ("cancelled", 409), ("start_timeout", 503)]
)
def test_a_status_says_whether_a_retry_may_help(kind: FailureKind, status: int) -> None:
    assert encode_error(SupervisorError(Failure(kind=kind, message="")))[0] == status


def test_a_bug_is_an_internal_error_without_details() -> None:
    status, body = encode_error(ZeroDivisionError("secret"))
    assert (status, body.type) == (500, "internal_error")
    assert "secret" not in body.message
    assert isinstance(decode_error(body), SupervisorUnreachable)
