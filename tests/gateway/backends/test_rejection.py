"""Errors that backends answer with: which of them are the request's fault."""

from __future__ import annotations

from typing import Any, cast

import pytest

from hostler.adapters.base import WireRequest
from hostler.adapters.canonical import ResponseHead
from hostler.adapters.errors import BackendBroken, BackendUnavailable
from hostler.adapters.llamacpp.upstream import LlamaCppUpstream
from hostler.gateway.backends.rejection import as_rejection, is_request_fault, rejection
from hostler.gateway.backends.transport import Backend, Endpoint, Timeouts

pytestmark = pytest.mark.anyio

ENDPOINT = Endpoint(host="127.0.0.1", port=1, name="a")
REASON = b'{"error": {"message": "failed to parse grammar", "code": 500}}'
TOO_LONG = b'{"error": {"message": "too long", "type": "exceed_context_size_error"}}'
LOADING = b'{"error": {"message": "Loading model", "type": "unavailable_error"}}'


class Health:
    """A transport whose only answer is to the health check; status 0 refuses the connection."""

    def __init__(self, status: int, body: bytes = b"") -> None:
        self.head = ResponseHead(status=status)
        self._body = body
        self.checks = 0

    def send(self, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts) -> Health:
        assert (request.method, request.path) == ("GET", "/health")
        self.checks += 1
        return self

    async def __aenter__(self) -> Health:
        if not self.head.status:
            raise BackendUnavailable("x")
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def read(self, limit: int) -> bytes:
        return self._body


def backend(health: Health, *, local: bool = True) -> Backend:
    transport = cast(Any, health)
    return Backend(name="a", upstream=LlamaCppUpstream(), transport=transport, timeouts=Timeouts(), local=local)


async def fault(status: int, body: bytes, health: Health, *, local: bool = True, **headers: str) -> bool:
    asked = backend(health, local=local)
    rejected = rejection(asked, ResponseHead(status=status), headers, body, "llamacpp")
    return await is_request_fault(rejected, asked, ENDPOINT)


@pytest.mark.parametrize(
    ("health", "expected"),
    [(Health(200), True), (Health(503, LOADING), True), (Health(503), False), (Health(0), False)],
)
async def test_an_error_with_a_reason_is_the_requests_fault_while_a_local_backend_lives(
    health: Health, expected: bool
) -> None:
    assert await fault(500, REASON, health) is expected
    assert health.checks == 1


@pytest.mark.parametrize("status", [500, 502, 503, 529, 403, 408])
async def test_an_error_of_a_remote_backend_is_not_and_it_is_not_asked(status: int) -> None:
    health = Health(200)
    assert not await fault(status, REASON, health, local=False)
    assert health.checks == 0


@pytest.mark.parametrize("status", [422, 500])
@pytest.mark.parametrize("local", [True, False])
async def test_a_request_that_is_too_long_is_at_fault_whatever_the_status(status: int, local: bool) -> None:
    assert await fault(status, TOO_LONG, Health(0), local=local)


async def test_an_error_that_promises_a_change_is_not_the_requests_fault() -> None:
    assert not await fault(500, REASON, Health(200), **{"retry-after": "1"})
    assert not await fault(503, LOADING, Health(200))


async def test_an_error_inside_a_stream_is_one_until_its_first_token() -> None:
    asked = backend(Health(200))
    broken = BackendBroken("x", body=REASON)
    found = as_rejection(broken, asked, begun=False)
    assert found is not None
    assert (found.backend_status, found.body) == (500, REASON)
    assert as_rejection(broken, asked, begun=True) is None
    assert as_rejection(BackendBroken("x"), asked, begun=False) is None
    assert as_rejection(found, asked, begun=True) is found
