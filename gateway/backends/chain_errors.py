"""Which hops failed for a request, and the error its client gets when all of them have."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hostler.adapters.errors import (
    BackendBroken,
    BackendError,
    BackendRejected,
    Forbidden,
    GatewayError,
    ModelUnavailable,
    TooManyRequests,
)
from hostler.gateway.backends.chain import Hop
from hostler.gateway.backends.failure_policy import (
    DESCRIPTIONS,
    AttemptResult,
    RejectionCause,
    SkipReason,
    rejection_cause,
)

#: `Retry-After` when nothing better is known, in seconds.
DEFAULT_RETRY_AFTER_S = 2.0

_REJECTIONS: dict[RejectionCause, str] = {
    "context": "the request is longer than the maximum context length of the model at {}",
    "model": "{} does not have the model",
    "contents": "{} refused the contents of the request",
    "request": "{} rejected the request as invalid",
}
_PERMANENT = frozenset({"rejected", "unsupported", "non_local", "too_long", "excluded"})


class FailedHop(msgspec.Struct, frozen=True, kw_only=True):
    """A hop that failed or was skipped, and when trying it again makes sense. `error` is `None` if it was skipped."""

    hop: Hop
    reason: AttemptResult | SkipReason
    error: GatewayError | None = None
    retry_after_s: float | None = None

    @property
    def description(self) -> str:
        """The failure as a clause, with its reason in parentheses."""
        if isinstance(self.error, TooManyRequests):
            return f"the queue of {self.hop.name} is full ({self.reason})"
        return f"{self.hop.name} {DESCRIPTIONS[self.reason]} ({self.reason})"


def summary(failed: Sequence[FailedHop]) -> str:
    """The failed hops with their reasons, for `X-Hostler-Reason` and the access log."""
    return "; ".join(f"{each.hop.name}: {each.reason}" for each in failed)


def chain_error(model: str | None, failed: Sequence[FailedHop]) -> GatewayError:
    """The client's error when no hop answered."""
    tried = [each for each in failed if each.error is not None]
    if tried and all(each.reason in ("rejected", "unsupported") for each in tried) and len(tried) == len(failed):
        error = tried[0].error
        assert error is not None
        return public_error(error, tried[0].hop)
    details = "; ".join(each.description for each in failed)
    if failed and all(each.reason == "non_local" for each in failed):
        return Forbidden(f"this request must stay local, but {model} has remote backends only: {details}")
    waits = [each.retry_after_s for each in failed if each.retry_after_s]
    permanent = all(each.reason in _PERMANENT for each in failed)
    retry_after_s = min(waits) if waits else None if permanent else DEFAULT_RETRY_AFTER_S
    if tried and all(each.reason == "busy" or isinstance(each.error, TooManyRequests) for each in tried):
        if len(failed) == 1 and isinstance(tried[0].error, TooManyRequests):
            return tried[0].error
        return TooManyRequests(
            f"all backends for {model} are busy: {details}", retry_after_s=retry_after_s, model=model
        )
    if len(failed) == 1 and tried:
        only = tried[0]
        assert only.error is not None
        if only.hop.supervised and only.reason not in ("unreachable", "connect_timeout"):
            return public_error(only.error, only.hop)
    return ModelUnavailable(f"no backend could answer for {model}: {details}", retry_after_s=retry_after_s, model=model)


def public_error(error: GatewayError, hop: Hop) -> GatewayError:
    """The error as clients may see it: what a remote backend sent stays in the log."""
    if isinstance(error, BackendRejected):
        if hop.local and (400 <= error.backend_status < 500 or error.backend_status == 501):
            return error  # 501: what this model cannot do, in its engine's own words
        if 400 <= error.backend_status < 500:
            return BackendRejected(
                _REJECTIONS[rejection_cause(error)].format(hop.name),
                backend=hop.name,
                wire="",
                backend_status=error.backend_status,
                headers={},
                body=b"",
                retry_after_s=error.retry_after_s,
            )
        return BackendError(f"{hop.name} answered with status {error.backend_status}", backend=hop.name)
    if isinstance(error, BackendBroken) and not hop.supervised:
        message = f"{hop.name} {DESCRIPTIONS['broken']}"
        return BackendBroken(message, backend=hop.name, backend_status=error.backend_status)
    return error
