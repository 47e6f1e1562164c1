"""The error that a backend answered with, and whether it is the request's own fault."""

from __future__ import annotations

import time
from collections.abc import Mapping

from hostler.adapters.base import WireRequest
from hostler.adapters.canonical import ResponseHead
from hostler.adapters.error_body import is_overflow
from hostler.adapters.errors import BackendBroken, BackendRejected, GatewayError
from hostler.gateway.backends.failure_policy import may_be_request_fault, retry_after, says_loading
from hostler.gateway.backends.transport import Backend, Endpoint, Timeouts

#: Bytes of an error answer that are read and passed on, at most.
ERROR_BODY_LIMIT = 1024 * 1024

#: Time limits for the check whether a backend that answered with an error is alive.
_HEALTH = Timeouts(connect_s=2.0, first_byte_s=3.0, between_bytes_s=3.0)


def rejection(
    backend: Backend,
    head: ResponseHead,
    headers: Mapping[str, str],
    body: bytes,
    wire: str,
    *,
    is_forwarded: bool = False,
) -> BackendRejected:
    """The error for an answer with an error status. `wire` is the protocol of its body."""
    return BackendRejected(
        f"{backend.name} answered with status {head.status}",
        backend=backend.name,
        wire=wire,
        backend_status=head.status,
        headers={**headers, "content-type": head.media_type},
        body=body,
        retry_after_s=retry_after(headers, time.time(), body),
        is_forwarded=is_forwarded,
    )


def as_rejection(error: BackendRejected | BackendBroken, backend: Backend, *, begun: bool) -> BackendRejected | None:
    """The error as the answer that it is: one inside a stream, before its first token, is no different from one with
    its own status. `None` for an answer that broke off, or that had `begun` with a token."""
    if isinstance(error, BackendRejected):
        return error
    if not error.body or begun:
        return None
    return rejection(backend, ResponseHead(status=error.backend_status or 500), {}, error.body, backend.upstream.wire)


async def is_request_fault(rejected: BackendRejected, backend: Backend, endpoint: Endpoint) -> bool:
    """Whether a rejection is the request's fault: where its status does not say so, a local backend that gives a
    reason is asked whether it is alive."""
    status = rejected.backend_status
    if status == 422 and is_overflow(rejected):
        return True
    if not may_be_request_fault(status, rejected.body, retry_after=rejected.retry_after_s is not None):
        return False
    if status >= 500 and is_overflow(rejected):
        return True
    return backend.local and await _is_alive(backend, endpoint)


async def _is_alive(backend: Backend, endpoint: Endpoint) -> bool:
    """Whether the backend is still well, or loads its model, after it has answered with an error of its own."""
    check = WireRequest(method="GET", path=backend.health_path, headers=backend.headers)
    try:
        async with backend.transport.send(check, endpoint, _HEALTH) as answer:
            if answer.head.status == 503:
                return says_loading(await answer.read(ERROR_BODY_LIMIT))
            return answer.head.status < 500
    except GatewayError:
        return False
