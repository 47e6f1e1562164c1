"""The errors of a request; each adapter encodes them in its protocol.

GatewayError
├── BadRequest · Unauthenticated · Forbidden · NotFound · ModelNotFound · MethodNotAllowed · UpgradeRequired
│   RequestTooLarge · UnsupportedMediaType · MisdirectedRequest · TooManyRequests (RateLimited) · WaitTimeout · ModelUnavailable · ModelNotLoaded · ShuttingDown
│   OutOfDescriptors · ClientDisconnected · RequestCancelled
└── BackendError
    ├── BackendUnavailable   never connected: nothing was sent, a retry elsewhere is safe
    ├── BackendTimeout       connected, but silent for too long
    ├── BackendRejected      a complete answer with an error status
    └── BackendBroken        the answer broke off, or violates the protocol
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar


class GatewayError(Exception):
    """An error with a message for the client's user that names the cause and the way out.

    `status` is the HTTP status, `code` a stable identifier for programs. `retry_after_s` becomes `Retry-After`.
    `final`: the same request fails again until someone changes something, see `is_final`. `log_message` is what logs and
    events may say: the message without anything that a backend sent.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    final: bool = True

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, param: str | None = None, model: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = self.log_message = message
        self.retry_after_s = retry_after_s
        self.param = param
        self.model = model


class BadRequest(GatewayError):
    """The request is invalid; `param` names the field."""

    status, code = 400, "invalid_request"


class Unauthenticated(GatewayError):
    """The API key is missing or unknown."""

    status, code = 401, "invalid_api_key"


class Forbidden(GatewayError):
    """The key lacks the scope, or the gateway does not allow the operation."""

    status, code = 403, "forbidden"


class NotFound(GatewayError):
    """The route or resource does not exist."""

    status, code = 404, "not_found"


class ModelNotFound(GatewayError):
    """No model has this name; `model` is the name as sent."""

    status, code = 404, "model_not_found"


class MethodNotAllowed(GatewayError):
    """The route does not accept this method; `allowed` lists those that it accepts."""

    status, code = 405, "method_not_allowed"

    def __init__(self, message: str, *, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class UpgradeRequired(GatewayError):
    """The route speaks plain HTTP only, and not the protocol that the client wants to change to."""

    status, code = 426, "upgrade_required"


class RequestTooLarge(GatewayError):
    """The body exceeds the limit."""

    status, code = 413, "request_too_large"


class UnsupportedMediaType(GatewayError):
    """The route does not accept this content type."""

    status, code = 415, "unsupported_media_type"


class MisdirectedRequest(GatewayError):
    """The `Host` header names another server."""

    status, code = 421, "misdirected_request"


class TooManyRequests(GatewayError):
    """The queue is full."""

    status, code = 429, "queue_full"
    final = False


class RateLimited(TooManyRequests):
    """The client sends more than it may, whatever others send."""

    code = "rate_limited"


class WaitTimeout(GatewayError):
    """The request was in the queue for the longest time allowed."""

    status, code = 503, "wait_limit_reached"
    final = False


class ModelUnavailable(GatewayError):
    """The model exists but cannot answer now: it failed to load, does not fit, or every backend is down."""

    status, code = 503, "model_not_available"

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, model: str | None = None, final: bool = False
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, model=model)
        self.final = final


class ModelNotLoaded(GatewayError):
    """The request does not load its model, and the model is not loaded."""

    status, code = 409, "model_not_loaded"


class AnswerTooLong(GatewayError):
    """The answer took longer than the model's profile allows. The backend is not to blame."""

    status, code = 504, "answer_too_long"


class ShuttingDown(GatewayError):
    """The gateway is shutting down."""

    status, code = 503, "shutting_down"
    final = False


class OutOfDescriptors(GatewayError):
    """The gateway has no file descriptor left for another connection. The backend is not to blame."""

    status, code = 503, "out_of_descriptors"
    final = False

    def __init__(self) -> None:
        super().__init__(
            "the gateway has as many connections as its limit of open files allows; raise it (ulimit -n, LimitNOFILE)",
            retry_after_s=5.0,
        )


class ClientDisconnected(GatewayError):
    """The client disconnected. Never sent; logs and metrics count it."""

    status, code = 499, "client_closed_request"


class RequestCancelled(GatewayError):
    """An operator cancelled the request. Its status is one that clients do not retry on their own."""

    status, code = 499, "request_cancelled"


class BackendError(GatewayError):
    """A backend failed; `backend` is its name in the configuration."""

    status, code = 502, "backend_error"
    final = False

    def __init__(self, message: str, *, backend: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.backend = backend


class BackendUnavailable(BackendError):
    """Never connected, so the backend cannot have received the request. `timed_out`: connecting took too long."""

    code = "backend_unavailable"

    def __init__(
        self, message: str, *, backend: str = "", retry_after_s: float | None = None, timed_out: bool = False
    ) -> None:
        super().__init__(message, backend=backend, retry_after_s=retry_after_s)
        self.timed_out = timed_out


class BackendTimeout(BackendError):
    """Connected, but the backend was silent for too long."""

    status, code = 504, "backend_timeout"


class BackendRejected(BackendError):
    """The backend answered with an error status. `body` is its response, in the protocol `wire`.

    `request_fault`: whatever the status, the error concerns this request alone: the backend is local, lives, and gives a
    reason in its own words, or the request is too long for it. `is_forwarded`: it is about a request that only the backend
    understands.
    """

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
        request_fault: bool = False,
        is_forwarded: bool = False,
    ) -> None:
        super().__init__(message, backend=backend, retry_after_s=retry_after_s)
        self.wire = wire
        self.backend_status = backend_status
        self.headers = headers
        self.body = body
        self.request_fault = request_fault
        self.is_forwarded = is_forwarded


class BackendBroken(BackendError):
    """The response broke off, violates the protocol, or contains an error: then `body` is that error as the backend sent
    it, and `backend_status` the status that it names."""

    code = "backend_broken"

    def __init__(
        self,
        message: str,
        *,
        backend: str = "",
        retry_after_s: float | None = None,
        backend_status: int | None = None,
        body: bytes = b"",
    ) -> None:
        super().__init__(message, backend=backend, retry_after_s=retry_after_s)
        self.backend_status = backend_status
        self.body = body


class AnswerTooLarge(BackendBroken):
    """A whole answer of more than `limit` bytes, where it has to be kept in memory. The same request fails again, which is
    no fault of the backend."""

    code = "answer_too_large"
    final = True

    def __init__(self, limit: int) -> None:
        size = f"{limit // 2**20} MiB" if limit >= 2**20 else f"{limit} bytes"
        super().__init__(
            f"the answer is larger than {size}, the limit for answers in one piece; ask for less, or for a stream"
        )


def drop_tracebacks(error: BaseException) -> None:
    """Drop the tracebacks of an error that has been handled, and of those that led to it.

    A traceback keeps the frames that it passed, and with them the bodies of the request and of the answer. Frames refer
    back to their errors, so such a cycle would stay until the garbage collector finds it, which counts objects, not bytes.
    """
    pending, seen = [error], set[int]()
    while pending:
        each = pending.pop()
        seen.add(id(each))
        each.__traceback__ = None
        pending += [
            other for other in (each.__cause__, each.__context__) if other is not None and id(other) not in seen
        ]


#: `Retry-After` when nothing better is known, in seconds.
DEFAULT_RETRY_AFTER_S = 2.0

#: Statuses that clients send a request again for.
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


def is_final(error: GatewayError) -> bool:
    """Whether the same request fails again until someone changes it, the configuration, or a backend's account."""
    if isinstance(error, BackendRejected):
        return is_account_error(error) or client_status(error) not in _RETRIED
    return error.final


def error_headers(error: GatewayError) -> list[tuple[str, str]]:
    """The headers of an error response: `x-should-retry` or `Retry-After`, `WWW-Authenticate`,
    `Allow` and `Upgrade`.

    Clients built with OpenAI's and Anthropic's libraries, and Claude Code, send no request again after
    `x-should-retry: false`. A final error may have a `Retry-After` as well, for what is over by itself, but not soon.
    """
    headers: list[tuple[str, str]] = []
    final, retry_after_s = is_final(error), error.retry_after_s
    if final:
        headers.append(("x-should-retry", "false"))
    elif retry_after_s is None:
        retry_after_s = DEFAULT_RETRY_AFTER_S
    if retry_after_s is not None:
        headers.append(("Retry-After", str(max(1, math.ceil(retry_after_s)))))
    if isinstance(error, Unauthenticated):
        headers.append(("WWW-Authenticate", "Bearer"))
    if isinstance(error, MethodNotAllowed) and error.allowed:
        headers.append(("Allow", ", ".join(error.allowed)))
    if isinstance(error, UpgradeRequired):
        headers.append(("Upgrade", "HTTP/1.1"))
    return headers


#: What servers answer a request with that is too long, beside 400 and 413.
_UNUSUAL = frozenset({422})
_ACCOUNT_STATUSES = frozenset({401, 402, 403, 407})


def is_account_error(error: BackendRejected) -> bool:
    """Whether the error is about the gateway's own account at the backend: its key, not the client's."""
    return error.backend_status in _ACCOUNT_STATUSES and not error.request_fault


def client_status(error: GatewayError) -> int:
    """The status to answer with: a backend's 4xx for the client's own mistake is passed on.

    Another status of what is the request's fault becomes a 400, since clients send a request again after a 500. 501 is
    what a model cannot do.
    """
    if not isinstance(error, BackendRejected):
        return error.status
    status = error.backend_status
    if error.request_fault and (status in _RETRIED or status in _UNUSUAL):
        return 400
    if 400 <= status < 500:
        return error.status if is_account_error(error) else status
    if status == 501:
        return status
    return 400 if error.request_fault else error.status


def printable(text: str, limit: int = 200) -> str:
    """Untrusted text for a message: truncated, control characters escaped."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)


def invalid_event() -> BackendBroken:
    """An event of a stream that cannot be decoded."""
    return BackendBroken("The backend sent an event that its protocol does not allow.")


def invalid_response() -> BackendBroken:
    """A response that cannot be decoded."""
    return BackendBroken("The backend sent a response that its protocol does not allow.")


def empty_response() -> BackendBroken:
    """A response without a body."""
    return BackendBroken("The backend sent an empty response.")


def missing_vectors(vectors: int, inputs: int) -> BackendBroken:
    return BackendBroken(f"The backend sent {vectors} embeddings for {inputs} inputs.")


def incomplete_response() -> BackendBroken:
    """A stream that ended without its end mark."""
    return BackendBroken("The backend's response ended before it was complete.")


def truncated_response(received: int, length: int) -> BackendBroken:
    """A body that is not as long as its head said, in bytes."""
    return BackendBroken(f"The backend's response ended after {received} of {length} bytes.")


def reported_error(message: object, *, backend_status: int | None = None, body: bytes = b"") -> BackendBroken:
    """An error that the backend put into its response, with the backend's own message if it has one."""
    unspecified = "The backend reported an error in the middle of its response."
    if not isinstance(message, str) or not message.strip():
        return BackendBroken(unspecified, backend_status=backend_status, body=body)
    text = "".join(char if char.isprintable() else " " for char in message[:500])
    error = BackendBroken(f"The backend reported an error: {text}", backend_status=backend_status, body=body)
    error.log_message = unspecified
    return error
