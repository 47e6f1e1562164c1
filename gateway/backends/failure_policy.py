"""What an attempt's error means: its outcome in the table, and the words for it that may be told to anybody.

Plain functions. The words name backends and kinds of failure, never addresses, paths or what a backend said.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from hostler.adapters.errors import (
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
from hostler.adapters.json_body import NOT_JSON

Outcome = Literal[
    "answered",  # the first word came
    "unreachable",  # refused, no route, no such name: nothing was sent
    "connect_timeout",
    "loading",  # 503 "loading", or the supervisor says that it is switching
    "model_unavailable",  # the supervisor answers, but cannot have the model now: its queue is full, or the load failed
    "busy",  # 429, or 503 with Retry-After
    "server_error",  # 5xx, or an error inside the answer, or its end, before the first word
    "rejected",  # 400, 404, 413, 422: this request, not this backend
    "auth_failed",  # 401, 403
    "payment_required",  # 402 (one with Retry-After is "busy": a limit on what is in flight)
    "first_byte_timeout",
    "broken",  # silence, end or error after the first word
    "client_disconnected",
]

# no · wait: until it is ready, with progress · if_short: once, after a short Retry-After · budget: once, from the budget
SameHop = Literal["no", "wait", "if_short", "budget"]

# yes · no · never: words are out · past_limit: when waiting took too long · if_other: only where the model or its
# context is another one
NextHop = Literal["yes", "no", "never", "past_limit", "if_other"]

# What a breaker is told. cool: no calls until Retry-After is over · open: none for `open_s` · suspect: a failure if
# another model of the host failed as well
Advice = Literal["success", "neutral", "failure", "suspect", "cool", "open"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A row: what to do now, what the breakers of (host, model) and of the host are told, and whether people are."""

    again: SameHop = "no"
    onward: NextHop = "yes"
    model: Advice = "neutral"
    host: Advice = "neutral"
    open_s: float = 0.0
    alert: bool = False


VERDICTS: Mapping[Outcome, Verdict] = {
    "answered": Verdict(onward="no", model="success", host="success"),
    "unreachable": Verdict(host="failure"),
    "connect_timeout": Verdict(host="failure"),
    "loading": Verdict(again="wait", onward="past_limit"),
    "model_unavailable": Verdict(),
    "busy": Verdict(again="if_short", model="cool"),
    "server_error": Verdict(again="budget", model="failure", host="suspect"),
    "rejected": Verdict(onward="if_other"),
    "auth_failed": Verdict(model="open", open_s=15 * 60.0, alert=True),
    "payment_required": Verdict(model="open", open_s=6 * 3600.0, alert=True),
    "first_byte_timeout": Verdict(model="failure"),
    "broken": Verdict(onward="never", model="failure"),
    "client_disconnected": Verdict(onward="no"),
}


def outcome_of_status(status: int, *, retry_after: bool, loading: bool = False) -> Outcome:
    """The outcome of a complete answer with a status other than success: a redirect is an error, too.

    501 is not a failure: the model cannot do what was asked (embeddings, infill), and will not be able to a moment later.
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


#: What about a request was rejected: it is too long for the context, the model is not there, its contents were
#: refused by a filter, or the request itself is wrong.
Fault = Literal["context", "model", "contents", "request"]

#: Why a backend was not even asked.
Skip = Literal["circuit_open", "non_local", "budget_exhausted", "too_long", "excluded", "max_attempts", "unsupported"]

WORDS: Mapping[Outcome | Skip, str] = {
    "answered": "answered",
    "unreachable": "cannot be reached",
    "connect_timeout": "takes no connection",
    "loading": "was not ready in time",
    "model_unavailable": "cannot have the model now",
    "busy": "is busy",
    "server_error": "failed",
    "rejected": "refused the request",
    "auth_failed": "refused our key",
    "payment_required": "wants to be paid",
    "first_byte_timeout": "did not answer in time",
    "broken": "broke off its answer",
    "client_disconnected": "was given up",
    "circuit_open": "is left alone after failures",
    "non_local": "is outside the house, and the request must stay inside",
    "budget_exhausted": "is left out until tomorrow: the daily limit is spent",
    "too_long": "has too small a context",
    "excluded": "was not asked for",
    "max_attempts": "was not tried: three backends are enough for one request",
    "unsupported": "does not understand this kind of request",
}

_LONGEST_WAIT_S = 86400.0


def outcome_of(error: GatewayError, *, committed: bool) -> Outcome | None:
    """The row of the table that an attempt's error belongs to; `None` if it says nothing about the backend."""
    if isinstance(error, BackendError):
        if committed:
            return "broken"
        if isinstance(error, BackendUnavailable):
            return "connect_timeout" if error.timed_out else "unreachable"
        if isinstance(error, BackendTimeout):
            return "first_byte_timeout"
        if isinstance(error, BackendRejected):
            return _of_rejection(error)
        if isinstance(error, BackendBroken) and error.backend_status is not None:
            return outcome_of_status(error.backend_status, retry_after=error.retry_after_s is not None)
        return "server_error"
    if isinstance(error, WaitTimeout):
        return "loading"
    if isinstance(error, TooManyRequests | ModelUnavailable):
        return "model_unavailable"
    return None


def _of_rejection(error: BackendRejected) -> Outcome:
    status, told = error.backend_status, error.retry_after_s is not None
    if status == 503 and _is_loading(error.body):
        return "loading"
    if status == 403 and fault_of(error) == "contents":
        return "rejected"
    if status == 402 and says_retryable(error):
        return "busy"  # a limit on what is in flight, not on the account
    if status == 503 and says_retryable(error) is False:
        return "busy"  # nobody is there to answer, and will not be in a moment
    return outcome_of_status(status, retry_after=told)


def fault_of(error: GatewayError) -> Fault:
    """What was wrong with a rejected request."""
    if not isinstance(error, BackendRejected):
        return "request"
    told = _error_in(error.body)
    kind, code, message = str(told.get("type", "")), str(told.get("code", "")), str(told.get("message", "")).lower()
    if (
        kind == "exceed_context_size_error"
        or code == "context_length_exceeded"
        or error.backend_status == 413
        or "maximum context length" in message
        or "prompt is too long" in message
    ):
        return "context"
    metadata = told.get("metadata")
    if (
        error.backend_status == 403
        and isinstance(metadata, dict)
        and ("reasons" in metadata or "flagged_input" in metadata)
    ):
        return "contents"
    if error.backend_status == 404 or code == "model_not_found":
        return "model"
    return "request"


def says_retryable(error: GatewayError) -> bool | None:
    """Whether a backend says itself that trying again makes sense (OpenRouter does in `metadata`); `None` if it does not."""
    if not isinstance(error, BackendRejected):
        return None
    told = _error_in(error.body)
    metadata = told.get("metadata")
    for place in (metadata if isinstance(metadata, dict) else {}, told):
        if isinstance(place.get("retryable"), bool):
            return bool(place["retryable"])
    return None


def _is_loading(body: bytes) -> bool:
    told = _error_in(body)
    return told.get("type") == "unavailable_error" and "loading" in str(told.get("message", "")).lower()


def _error_in(body: bytes) -> dict[str, Any]:
    """The `error` object of an error answer, in the shape that OpenAI's, Anthropic's and llama.cpp's share."""
    try:
        decoded = msgspec.json.decode(body)
    except NOT_JSON:
        return {}
    told = decoded.get("error") if isinstance(decoded, dict) else None
    return told if isinstance(told, dict) else {"message": told or ""}


def retry_after(headers: Mapping[str, str], now: float, body: bytes = b"") -> float | None:
    """The seconds to wait that an answer asks for; `None` if it says nothing sensible.

    `Retry-After` counts in either of its forms; without it the moment at which a limit ends, which OpenRouter tells in
    the body only (`error.metadata.headers`). `now` is in seconds since the epoch. A day is the longest that is believed.
    """
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


def _limit_ends_in(headers: Mapping[str, str], now: float, body: bytes) -> float | None:
    """The time until `X-RateLimit-Reset`: a moment in the future, in seconds or milliseconds since the epoch."""
    metadata = _error_in(body).get("metadata") if body else None
    inside = metadata.get("headers") if isinstance(metadata, dict) else None
    told = {str(name).lower(): value for name, value in inside.items()} if isinstance(inside, dict) else {}
    for place in (headers, told):
        try:
            moment = float(str(place.get("x-ratelimit-reset", "")))
        except ValueError:
            continue
        seconds = (moment / 1000 if moment > 1e11 else moment) - now
        if 0 < seconds <= _LONGEST_WAIT_S:
            return seconds
    return None


#: No tokenizer is known to make more of a text: long runs of spaces and the like aside, a token is 2 to 5 bytes.
_BYTES_PER_TOKEN = 8
_NOT_TEXT = (b"data:", b'"images"', b'"input_audio"', b"base64")


def tokens_at_least(body: bytes) -> int:
    """How many tokens a request has at the very least, guessed from its bytes; 0 if it carries pictures or sounds."""
    if len(body) < 4 * 1024 or any(mark in body for mark in _NOT_TEXT):
        return 0
    # Escapes (\\u00e9, \\n) take up to three times the bytes of what they stand for.
    size = len(body) if body.count(b"\\") * 50 < len(body) else len(body) // 3
    return size // _BYTES_PER_TOKEN
