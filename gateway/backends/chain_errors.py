"""Which hops failed for a request, and the error its client gets when all of them have."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from hostler.adapters.error_body import read_error
from hostler.adapters.errors import (
    DEFAULT_RETRY_AFTER_S,
    AnswerTooLarge,
    BackendBroken,
    BackendError,
    BackendRejected,
    BadRequest,
    Forbidden,
    GatewayError,
    ModelUnavailable,
    TooManyRequests,
)
from hostler.gateway.backends.failure_policy import (
    DESCRIPTIONS,
    AttemptResult,
    RejectionCause,
    SkipReason,
    classify_error,
    rejection_cause,
)
from hostler.gateway.backends.hop import Hop

#: The longest pause of a backend that a client should wait for on its own, in seconds. Many wait without a word.
LONGEST_PAUSE_S = 60.0

_REJECTIONS: dict[RejectionCause, str] = {
    "context": "the request is longer than the maximum context length of the model at {}",
    "model": "{} does not have the model",
    "contents": "{} refused the contents of the request",
    "engine": "{} failed at this request",
    "request": "{} rejected the request as invalid",
}
#: What is the request's own fault at each hop.
_FAULTS = frozenset({"rejected", "unsupported", "too_long"})
#: That there is no such route or thing.
_UNKNOWN = frozenset({404, 405, 410})
#: What the request itself rules out.
_RULED_OUT = frozenset({"excluded", "non_local"})
#: What another try soon changes.
_BUSY = frozenset({"busy", "rate_limited"})
_DOWN = frozenset({"unreachable", "connect_timeout"})
#: What no other try changes, until someone acts.
_PERMANENT = frozenset(
    {"rejected", "unsupported", "non_local", "too_long", "excluded", "auth_failed", "payment_required"}
)


class FailedHop(msgspec.Struct, frozen=True, kw_only=True):
    """A hop that failed or was skipped, and when trying it again makes sense. `error` is `None` if it was skipped.

    `context` is the model's context there in tokens, 0 if unknown. `paused_by` is the failure for which its circuit is
    open.
    """

    hop: Hop
    reason: AttemptResult | SkipReason
    error: GatewayError | None = None
    retry_after_s: float | None = None
    context: int = 0
    paused_by: AttemptResult | None = None

    @property
    def description(self) -> str:
        """The failure as a clause, with its reason in parentheses."""
        if isinstance(self.error, TooManyRequests):
            return f"the queue of {self.hop.name} is full ({self.reason})"
        if isinstance(self.error, ModelUnavailable) and self.hop.supervised:
            return f"{self.error.message} ({self.reason})"
        if self.redirects:
            return (
                f"{self.hop.name} redirects to another address, which is not followed: correct its URL ({self.reason})"
            )
        words = f"{self.hop.name} {DESCRIPTIONS[self.reason]}"
        if self.paused_by is not None:
            words += f": it {DESCRIPTIONS[self.paused_by]}"
        return f"{words} ({self.reason})"

    @property
    def redirects(self) -> bool:
        """Whether it answered that something else is at its address."""
        return isinstance(self.error, BackendRejected) and 300 <= self.error.backend_status < 400

    @property
    def permanent(self) -> bool:
        """Whether every other try fails as well, until someone acts."""
        error = self.error
        return (
            self.reason in _PERMANENT
            or self.paused_by in _PERMANENT
            or self.redirects
            or (isinstance(error, ModelUnavailable) and error.final)
        )

    @property
    def is_down(self) -> bool:
        """Whether nothing accepts connections there: it will hardly be back for this request."""
        return self.reason in _DOWN or self.paused_by in _DOWN

    @property
    def final(self) -> bool:
        """Whether clients should not try again on their own: it is permanent, or takes too long."""
        pauses = self.reason in ("circuit_open", "busy") and (self.retry_after_s or 0.0) > LONGEST_PAUSE_S
        return self.permanent or pauses or self.reason == "budget_exhausted"


def summary(failed: Sequence[FailedHop]) -> str:
    """The failed hops with their reasons, for `X-Hostler-Reason` and the access log."""
    return "; ".join(f"{each.hop.name}: {each.reason}" for each in failed)


def chain_error(model: str | None, failed: Sequence[FailedHop]) -> GatewayError:
    """The client's error when no hop answered."""
    tried = [each for each in failed if each.error is not None]
    fault = _fault(failed)
    if fault is not None and fault.error is not None:
        return public_error(fault.error, fault.hop)
    details = "; ".join(each.description for each in failed)
    if failed and all(each.reason == "non_local" for each in failed):
        return Forbidden(f"this request must stay local, but {model} has remote backends only: {details}")
    final = all(each.final for each in failed)
    waits = [each.retry_after_s for each in failed if each.retry_after_s and not each.permanent and each.final == final]
    retry_after_s = min(waits, default=None if final else DEFAULT_RETRY_AFTER_S)
    waiting = [each for each in failed if each.error is not None or each.reason == "rate_limited"]
    if waiting and all(each.reason in _BUSY or isinstance(each.error, TooManyRequests) for each in waiting):
        if tried and len(failed) == 1 and isinstance(tried[0].error, TooManyRequests):
            return tried[0].error
        busy = TooManyRequests(
            f"all backends for {model} are busy: {details}", retry_after_s=retry_after_s, model=model
        )
        busy.final = final
        return busy
    if len(failed) == 1 and tried:
        only = tried[0]
        assert only.error is not None
        if only.hop.supervised and only.reason not in ("unreachable", "connect_timeout"):
            return public_error(only.error, only.hop)
    message = f"no backend could answer for {model}: {details}"
    return ModelUnavailable(message, retry_after_s=retry_after_s, model=model, final=final)


def _fault(failed: Sequence[FailedHop]) -> FailedHop | None:
    """The hop whose error shows that the request itself has to change, unless another hop may serve it later."""
    faults = [each for each in failed if each.error is not None and each.reason in _FAULTS]
    if faults and all(each.reason in _FAULTS for each in failed if each.reason not in _RULED_OUT):
        return faults[0]
    for each in faults:
        if _is_final(each.error):
            return each
    # That one backend lacks the model, or the kind of request, says nothing about the others.
    own = [
        each for each in faults if isinstance(each.error, BackendRejected) and rejection_cause(each.error) != "model"
    ]
    rest = [each for each in failed if each.reason not in _FAULTS]
    return own[0] if own and all(each.final or each.is_down for each in rest) else None


def public_error(error: GatewayError, hop: Hop) -> GatewayError:
    """The error as clients may see it: what a remote backend sent stays in the log, unless it answers a request that only
    the backend understands."""
    if isinstance(error, BackendRejected):
        if error.is_forwarded and error.backend_status in _UNKNOWN:
            return error
        is_client_error = 400 <= error.backend_status < 500 or error.request_fault
        if hop.local and (is_client_error or error.backend_status == 501):
            return error  # 501: what this model cannot do, in its engine's own words
        if is_client_error:
            return _described(error, hop)
        return BackendError(f"{hop.name} answered with status {error.backend_status}", backend=hop.name)
    if isinstance(error, BackendBroken) and not isinstance(error, AnswerTooLarge) and not hop.supervised:
        message = f"{hop.name} {DESCRIPTIONS['broken']}"
        return BackendBroken(message, backend=hop.name, backend_status=error.backend_status)
    return error


def too_long(model: str, tokens: int, context: int) -> BackendRejected:
    """The error for a request that is certainly too long, in the form that engines use."""
    message = f"request (at least {tokens} tokens) exceeds the available context size ({context} tokens) of {model}"
    fields = {"message": message, "type": "exceed_context_size_error", "n_prompt_tokens": tokens, "n_ctx": context}
    body = msgspec.json.encode({"error": {"code": 400, **fields}})
    return BackendRejected(message, backend="", wire="", backend_status=400, headers={}, body=body, request_fault=True)


_WHAT = {"completion": "chat or completions", "vision": "images", "audio": "audio", "tools": "tools"}


def unsupported(model: str, missing: Collection[str]) -> BadRequest:
    """The error for a request that needs what a model certainly cannot do."""
    what = " or ".join(words for name, words in _WHAT.items() if name in missing)
    return BadRequest(f"{model} does not support {what}; use another model", param="model", model=model)


def _described(error: BackendRejected, hop: Hop) -> BackendRejected:
    """The rejection of a remote backend by its cause. Of a request that is too long, its length is shown as well."""
    cause = rejection_cause(error)
    message, body = _REJECTIONS[cause].format(hop.name), b""
    if cause == "context":
        details = read_error(error.body)
        sizes = details.sizes if details is not None else None
        shown = {} if sizes is None else {"n_prompt_tokens": sizes[0], "n_ctx": sizes[1]}
        fields = {"message": message, "type": "invalid_request_error", "code": "context_length_exceeded", **shown}
        body = msgspec.json.encode({"error": fields})
    return BackendRejected(
        message,
        backend=hop.name,
        wire="",
        backend_status=400 if error.request_fault else error.backend_status,
        headers={},
        body=body,
        retry_after_s=error.retry_after_s,
    )


def _is_final(error: GatewayError | None) -> bool:
    """Whether trying again is useless, whatever the other hops answer then: the request itself has to change."""
    return (
        isinstance(error, BackendRejected)
        and rejection_cause(error) == "context"
        and classify_error(error, committed=False) == "rejected"
    )
