"""How an attempt's error is classified, and what follows from each class: the policy table and its descriptions.

Plain functions. Descriptions name kinds of failure, never addresses, paths or what a backend sent: clients may see
them.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from hostler.adapters.error_body import ErrorDetails, read_error
from hostler.adapters.errors import (
    AnswerTooLarge,
    BackendBroken,
    BackendError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    GatewayError,
    ModelUnavailable,
    TooManyRequests,
    WaitTimeout,
)

AttemptResult = Literal[
    "answered",  # the first token arrived
    "unreachable",  # connection refused, no route, unknown host: nothing was sent
    "connect_timeout",
    "loading",  # 503 "loading", or waiting for the host's queue or switch took too long
    "model_unavailable",  # the supervisor answers but cannot serve the model now: its queue is full, or the load failed
    "busy",  # 429, or 503 with Retry-After
    "server_error",  # 5xx, an error inside the answer, or its end, before the first token
    # 400, 404, 413, 422, any error with a reason from a local backend that lives, or an answer that is too large: the
    # request's fault
    "rejected",
    "auth_failed",  # 401, 403
    "payment_required",  # 402, or 429 for a used-up quota (one with Retry-After is "busy": a limit on requests in flight)
    "first_byte_timeout",
    "broken",  # silence, end or error after the first token
    "client_disconnected",
]

#: no · wait: until the model is loaded, with progress · if_short: once, after a short Retry-After · budget: once, if
#: the retry budget allows
RetryRule = Literal["no", "wait", "if_short", "budget"]

#: yes · no · never: tokens have been sent · past_limit: once the wait is too long · if_other: only to a hop whose model
#: or context differs
FallbackRule = Literal["yes", "no", "never", "past_limit", "if_other"]

#: What a breaker records. cool: no calls until Retry-After is over · open: none for `open_s` · suspect: a failure if
#: another model of the host failed as well
BreakerSignal = Literal["success", "neutral", "failure", "suspect", "cool", "open"]


class FailureRule(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from an outcome: a retry on the same hop, a fallback to the next one, the signals to the breakers of
    (host, model) and of the host, and whether an operator is alerted."""

    retry: RetryRule = "no"
    fallback: FallbackRule = "yes"
    model: BreakerSignal = "neutral"
    host: BreakerSignal = "neutral"
    open_s: float = 0.0
    alert: bool = False


FAILURE_RULES: Mapping[AttemptResult, FailureRule] = {
    "answered": FailureRule(fallback="no", model="success", host="success"),
    "unreachable": FailureRule(host="failure"),
    "connect_timeout": FailureRule(host="failure"),
    "loading": FailureRule(retry="wait", fallback="past_limit"),
    "model_unavailable": FailureRule(),
    "busy": FailureRule(retry="if_short", model="cool"),
    "server_error": FailureRule(retry="budget", model="failure", host="suspect"),
    "rejected": FailureRule(fallback="if_other"),
    "auth_failed": FailureRule(model="open", open_s=15 * 60.0, alert=True),
    "payment_required": FailureRule(model="open", open_s=6 * 3600.0, alert=True),
    "first_byte_timeout": FailureRule(model="failure"),
    "broken": FailureRule(fallback="never", model="failure"),
    "client_disconnected": FailureRule(fallback="no"),
}

#: What was wrong with a rejected request: it is too long for the context, the model does not exist there, a filter
#: refused its contents, an engine failed at it for a reason of its own, or the request itself is invalid.
RejectionCause = Literal["context", "model", "contents", "engine", "request"]

#: Why a hop was not tried.
SkipReason = Literal[
    "circuit_open",
    "draining",
    "non_local",
    "budget_exhausted",
    "budget_reserved",
    "rate_limited",
    "too_long",
    "excluded",
    "max_attempts",
    "unsupported",
]

#: Each completes "the backend ...".
DESCRIPTIONS: Mapping[AttemptResult | SkipReason, str] = {
    "answered": "answered",
    "unreachable": "cannot be reached",
    "connect_timeout": "accepted no connection in time",
    "loading": "was not ready in time",
    "model_unavailable": "cannot serve the model now",
    "busy": "is busy",
    "server_error": "failed",
    "rejected": "rejected the request",
    "auth_failed": "rejected the API key",
    "payment_required": "requires payment: its account has no credit",
    "first_byte_timeout": "did not answer in time",
    "broken": "broke off its answer",
    "client_disconnected": "was cancelled: the client disconnected",
    "circuit_open": "is paused after failures",
    "draining": "is being drained for maintenance",
    "non_local": "is not local, and the request must stay local",
    "budget_exhausted": "is skipped until tomorrow: the daily spending limit is reached",
    "budget_reserved": "is skipped for now: requests in progress may use up the daily spending limit",
    "rate_limited": "is skipped for now: its limit of requests or tokens per minute is reached",
    "too_long": "has too small a context",
    "excluded": "was excluded by X-Hostler-Only",
    "max_attempts": "was not tried: a request tries at most three backends",
    "unsupported": "does not support this kind of request",
}

_LONGEST_WAIT_S = 86400.0
#: Statuses below 500 that may be the fault of the request or of a moment.
_DOUBTFUL = frozenset({403, 408, 409, 425})
_BUSY_STATUSES = frozenset({503, 529})
_BUSY = re.compile(
    r"\b(?:busy|overloaded|capacity|slots?|try again|retry|temporarily|unavailable|shutting down)\b", re.I
)
#: OpenAI's codes, which come with status 429, and Anthropic's type.
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error"})
#: Bytes of a health check's answer that are searched.
_SEARCHED = 4096
_NO_DETAILS = ErrorDetails(message="")


def classify_status(status: int, *, retry_after: bool, loading: bool = False) -> AttemptResult:
    """The outcome of a complete answer with an error status; a redirect counts as an error.

    501 is not a failure of the backend: the model cannot do what was asked (embeddings, infill), now or later.
    """
    if loading:
        return "loading"
    if status == 429 or (status in (402, 503) and retry_after):
        return "busy"
    if status == 402:
        return "payment_required"
    if status in (401, 403, 407):
        return "auth_failed"
    if status < 400 or status == 408 or (status >= 500 and status != 501):
        return "server_error"
    return "rejected"


def classify_error(error: GatewayError, *, committed: bool) -> AttemptResult | None:
    """The outcome of an attempt that raised `error`; `None` if the error says nothing about the backend."""
    if isinstance(error, BackendError):
        if committed:
            return "broken"
        if isinstance(error, BackendUnavailable):
            return "connect_timeout" if error.timed_out else "unreachable"
        if isinstance(error, BackendTimeout):
            return "first_byte_timeout"
        if isinstance(error, BackendRejected):
            return _classify_rejection(error)
        if isinstance(error, AnswerTooLarge):
            return "rejected"
        if isinstance(error, BackendBroken) and error.backend_status is not None:
            return classify_status(error.backend_status, retry_after=error.retry_after_s is not None)
        return "server_error"
    if isinstance(error, WaitTimeout):
        return "loading"
    if isinstance(error, TooManyRequests | ModelUnavailable):
        return "model_unavailable"
    return None


def _classify_rejection(error: BackendRejected) -> AttemptResult:
    if error.request_fault:
        return "rejected"
    status, retry_after = error.backend_status, error.retry_after_s is not None
    if status == 403 and rejection_cause(error) == "contents":
        return "rejected"
    if status == 402 and retryable_hint(error):
        return "busy"  # a limit on requests in flight, not on the account
    if status in (402, 429) and not retry_after and _is_out_of_credit(_details(error.body)):
        return "payment_required"
    loading = status == 503 and _is_loading(_details(error.body))
    if status == 503 and not loading and _says_busy(_details(error.body)):
        return "busy"
    if status == 503 and not loading and retryable_hint(error) is False:
        return "busy"  # no provider can answer, nor will one in a moment
    return classify_status(status, retry_after=retry_after, loading=loading)


def rejection_cause(error: GatewayError) -> RejectionCause:
    """What was wrong with a rejected request, from the status and the error's fields."""
    if not isinstance(error, BackendRejected):
        return "request"
    details, status = _details(error.body), error.backend_status
    if status == 413 or details.is_overflow:
        return "context"
    if status == 403 and ("reasons" in details.metadata or "flagged_input" in details.metadata):
        return "contents"
    if status == 404 or details.code == "model_not_found":
        return "model"
    return "engine" if error.request_fault or (status >= 500 and status != 501) else "request"


def may_be_request_fault(status: int, body: bytes, *, retry_after: bool) -> bool:
    """Whether an error of status 500 or above, or one of those that clients send a request again for, or 403, may be the
    request's fault: it gives a reason, and promises no change."""
    if (status < 500 and status not in _DOUBTFUL) or status == 501 or retry_after:
        return False
    details = read_error(body)
    return (
        details is not None
        and bool(details.message)
        and not _is_loading(details)
        # Proxies say in plain text that they reach nothing.
        and not (details.is_text and status != 500)
        and not (status in _BUSY_STATUSES and _says_busy(details))
        and details.retryable is not False  # no provider can answer, whatever the request
    )


def retryable_hint(error: GatewayError) -> bool | None:
    """Whether the backend declares the error retryable, as OpenRouter does in `metadata`; `None` if it says neither."""
    if not isinstance(error, BackendRejected):
        return None
    return _details(error.body).retryable


def _is_out_of_credit(details: ErrorDetails) -> bool:
    return details.code in _NO_CREDIT or details.type in _NO_CREDIT


def _says_busy(details: ErrorDetails) -> bool:
    return details.type == "overloaded_error" or _BUSY.search(details.message) is not None


def says_loading(body: bytes) -> bool:
    """Whether a health check's answer with status 503 says that a model is being loaded, in any of the engines' forms."""
    return b"loading" in body[:_SEARCHED].lower()


def _is_loading(details: ErrorDetails) -> bool:
    return details.type == "unavailable_error" and "loading" in details.message.lower()


def _details(body: bytes) -> ErrorDetails:
    return read_error(body) or _NO_DETAILS


def retry_after(headers: Mapping[str, str], now: float, body: bytes = b"") -> float | None:
    """The seconds to wait that an answer asks for, at most a day; `None` if it gives no sensible value.

    From `retry-after-ms`, which OpenAI and Azure send beside it, from `Retry-After` in either of its forms, else from
    `X-RateLimit-Reset`, which OpenRouter sends in the body only (`error.metadata.headers`). `now` is in seconds since the
    epoch.
    """
    exact = _number(headers.get("retry-after-ms", ""))
    if exact is not None and exact >= 0:
        return min(exact / 1000, _LONGEST_WAIT_S)
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            at = datetime.datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=datetime.UTC)
        except ValueError:
            return _limit_ends_in(headers, now, body)
        seconds = at.timestamp() - now
    return min(max(0.0, seconds), _LONGEST_WAIT_S) if seconds == seconds else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _limit_ends_in(headers: Mapping[str, str], now: float, body: bytes) -> float | None:
    """The seconds until `X-RateLimit-Reset`, if that is a future time, in seconds or milliseconds since the epoch."""
    inside = _details(body).metadata.get("headers") if body else None
    fields = {str(name).lower(): value for name, value in inside.items()} if isinstance(inside, dict) else {}
    for place in (headers, fields):
        moment = _number(str(place.get("x-ratelimit-reset", "")))
        if moment is None:
            continue
        seconds = (moment / 1000 if moment > 1e11 else moment) - now
        if 0 < seconds <= _LONGEST_WAIT_S:
            return seconds
    return None


#: More than a token has on average: 2 to 5 bytes of text with known tokenizers, long runs of spaces and the like aside.
BYTES_PER_TOKEN = 8
_NOT_TEXT = (b"data:", b'"images"', b'"input_audio"', b"base64")


_RUN = re.compile(r"(.)\1{3,}", re.DOTALL)


#: Characters looked at in one go, which takes milliseconds: an expression keeps all other threads waiting.
_SLICE = 64 * 1024


def certain_tokens(texts: Iterable[str], limit: int | None = None) -> int:
    """A number of tokens that these texts certainly exceed with any tokenizer: long runs of a character count little.

    Above `limit` counting stops.
    """
    size, enough = 0, None if limit is None else (limit + 1) * BYTES_PER_TOKEN
    for text in texts:
        for start in range(0, len(text), _SLICE):
            piece = text[start : start + _SLICE]
            if start:
                piece = piece.lstrip(text[start - 1])  # the rest of a run
            size += len(_RUN.sub(r"\1\1\1", piece).encode("utf-8", "replace"))
            if enough is not None and size >= enough:
                return size // BYTES_PER_TOKEN
    return size // BYTES_PER_TOKEN


def min_prompt_tokens(body: bytes) -> int:
    """A lower bound of a request's tokens, from its size; 0 if it carries images or audio."""
    if len(body) < 4 * 1024 or any(mark in body for mark in _NOT_TEXT):
        return 0
    # Escapes (\\u00e9, \\n) take up to three times the bytes of what they encode.
    size = len(body) if body.count(b"\\") * 50 < len(body) else len(body) // 3
    return size // BYTES_PER_TOKEN
