"""What follows from how an attempt went: a table, and nothing but the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Outcome = Literal[
    "answered",  # the first word came
    "unreachable",  # refused, no route, no such name: nothing was sent
    "connect_timeout",
    "loading",  # 503 "loading", or the supervisor says that it is switching
    "not_had",  # the supervisor answers, but cannot have the model now: its queue is full, or the load failed
    "busy",  # 429, or 503 with Retry-After
    "server_error",  # 5xx, or an error inside the answer, or its end, before the first word
    "rejected",  # 400, 404, 413, 422: this request, not this backend
    "key_refused",  # 401, 403
    "unpaid",  # 402 (one with Retry-After is "busy": a limit on what is in flight)
    "first_byte_timeout",
    "broken",  # silence, end or error after the first word
    "client_left",
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
    "not_had": Verdict(),
    "busy": Verdict(again="if_short", model="cool"),
    "server_error": Verdict(again="budget", model="failure", host="suspect"),
    "rejected": Verdict(onward="if_other"),
    "key_refused": Verdict(model="open", open_s=15 * 60.0, alert=True),
    "unpaid": Verdict(model="open", open_s=6 * 3600.0, alert=True),
    "first_byte_timeout": Verdict(model="failure"),
    "broken": Verdict(onward="never", model="failure"),
    "client_left": Verdict(onward="no"),
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
        return "unpaid"
    if status in (401, 403, 407):
        return "key_refused"
    if status < 400 or status == 408 or (status >= 500 and status != 501):
        return "server_error"
    return "rejected"
