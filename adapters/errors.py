"""Everything that can go wrong with a request, as one tree; each adapter says it in its protocol's own words.

GatewayError
├── BadRequest · Unauthenticated · Forbidden · NotFound · ModelNotFound · MethodNotAllowed · RequestTooLarge
│   UnsupportedMediaType · MisdirectedRequest · TooManyRequests · WaitTimeout · ModelUnavailable · ShuttingDown
│   ClientDisconnected · RequestCancelled
└── BackendError
    ├── BackendUnavailable   never connected: nothing was sent, trying elsewhere is free
    ├── BackendTimeout       connected, but silent for too long
    ├── BackendRejected      a complete answer with an error status
    └── BackendBroken        the answer ended in the middle, or is no answer at all
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar


class GatewayError(Exception):
    """An error with a message for the person at the client: it names the thing and the way out.

    `status` is the HTTP status, `code` a stable word for programs. `retry_after_s` becomes `Retry-After`.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, param: str | None = None, model: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.param = param
        self.model = model


class BadRequest(GatewayError):
    """The request cannot be understood; `param` names the field."""

    status, code = 400, "invalid_request"


class Unauthenticated(GatewayError):
    """No key, or one that is not known."""

    status, code = 401, "invalid_api_key"


class Forbidden(GatewayError):
    """A known key without the scope, or a thing that this gateway does not do."""

    status, code = 403, "forbidden"


class NotFound(GatewayError):
    """No such route or thing."""

    status, code = 404, "not_found"


class ModelNotFound(GatewayError):
    """No model of that name; `model` is the name as it was sent."""

    status, code = 404, "model_not_found"


class MethodNotAllowed(GatewayError):
    """The route exists, the method does not; `allowed` lists those that do."""

    status, code = 405, "method_not_allowed"

    def __init__(self, message: str, *, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class RequestTooLarge(GatewayError):
    """The body is larger than the limit."""

    status, code = 413, "request_too_large"


class UnsupportedMediaType(GatewayError):
    """The body's content type is not taken here."""

    status, code = 415, "unsupported_media_type"


class MisdirectedRequest(GatewayError):
    """The `Host` header names somebody else."""

    status, code = 421, "misdirected_request"


class TooManyRequests(GatewayError):
    """The queue is full, or a client asks too often."""

    status, code = 429, "queue_full"


class WaitTimeout(GatewayError):
    """The request waited for its turn as long as it may."""

    status, code = 503, "wait_limit_reached"


class ModelUnavailable(GatewayError):
    """The model exists but cannot be had now: it failed to load, does not fit, or every hop is down."""

    status, code = 503, "model_not_available"


class ShuttingDown(GatewayError):
    """The gateway is shutting down."""

    status, code = 503, "shutting_down"


class ClientDisconnected(GatewayError):
    """The client left. Nobody reads this; logs and metrics count it."""

    status, code = 499, "client_closed_request"


class RequestCancelled(GatewayError):
    """Somebody who may do so ended the request. A status that clients do not try again after by themselves."""

    status, code = 499, "request_cancelled"


class BackendError(GatewayError):
    """Something behind the gateway failed; `backend` names it as the configuration does."""

    status, code = 502, "backend_error"

    def __init__(self, message: str, *, backend: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.backend = backend


class BackendUnavailable(BackendError):
    """Never connected: nothing of the request can have been received. `timed_out`: it was waited for in vain."""

    code = "backend_unavailable"

    def __init__(
        self, message: str, *, backend: str = "", retry_after_s: float | None = None, timed_out: bool = False
    ) -> None:
        super().__init__(message, backend=backend, retry_after_s=retry_after_s)
        self.timed_out = timed_out


class BackendTimeout(BackendError):
    """Connected, but nothing came in time; `committed` tells whether words were out already."""

    status, code = 504, "backend_timeout"


class BackendRejected(BackendError):
    """The backend answered with an error status: its answer, in its own protocol, for those who speak it too."""

    code = "backend_rejected"

    def __init__(
        self,
        message: str,
        *,
        backend: str,
        wire: str,
        backend_status: int,
        headers: Mapping[str, str],
        body: bytes,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, backend=backend, retry_after_s=retry_after_s)
        self.wire = wire
        self.backend_status = backend_status
        self.headers = headers
        self.body = body


class BackendBroken(BackendError):
    """The answer ended without its end, was reset, is not what the protocol allows, or holds an error.

    `backend_status` is the status that such an error names, if it does.
    """

    code = "backend_broken"

    def __init__(
        self, message: str, *, backend: str = "", retry_after_s: float | None = None, backend_status: int | None = None
    ) -> None:
        super().__init__(message, backend=backend, retry_after_s=retry_after_s)
        self.backend_status = backend_status


def error_headers(error: GatewayError) -> list[tuple[str, str]]:
    """What a refusal says in its headers in every protocol: when to come back, that a key is wanted, which methods there are."""
    headers: list[tuple[str, str]] = []
    if error.retry_after_s is not None:
        headers.append(("Retry-After", str(max(1, math.ceil(error.retry_after_s)))))
    if isinstance(error, Unauthenticated):
        headers.append(("WWW-Authenticate", "Bearer"))
    if isinstance(error, MethodNotAllowed) and error.allowed:
        headers.append(("Allow", ", ".join(error.allowed)))
    return headers
