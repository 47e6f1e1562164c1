"""A request that has ended, as spans: what it waited for, whom it was sent to, and how long the answer took.

Plain values, made after the fact from the exchange: nothing is measured for them, and no contents are in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import msgspec

from hostler.gateway.exchange import Attempt, Exchange
from hostler.gateway.tracecontext import Call, Trace, new_span

Value = str | int | float | bool


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time; `began` and `ended` in seconds since the epoch. `kind`: `server`, `client` or `internal`."""

    name: str
    span: str
    parent: str | None
    began: float
    ended: float
    kind: str = "internal"
    failed: str = ""
    attributes: Mapping[str, Value] = {}


def spans_of(exchange: Exchange, trace: Trace, *, now: float, wall: float) -> list[Span]:
    """The spans of a request that ends `now`, which is `wall` on the clock of the wall; the request itself first."""
    offset = wall - now
    spans = [_request(exchange, trace, exchange.started_at + offset, wall)]
    calls = list(trace.calls)
    for number, attempt in enumerate(exchange.attempts, start=1):
        # One attempt may need several calls: a stale connection, or a request that is said in another way.
        end = attempt.began_at + attempt.seconds
        own = [call for call in calls if attempt.began_at <= call.at <= end]
        last = number == len(exchange.attempts)
        spans += _attempt(exchange, trace, attempt, number, own, offset, last=last)
    return spans


def _request(exchange: Exchange, trace: Trace, began: float, ended: float) -> Span:
    usage, target = exchange.usage, exchange.target
    told: dict[str, Value | None] = {
        "gen_ai.operation.name": _OPERATIONS.get(exchange.operation.name, exchange.operation.name),
        "gen_ai.request.model": exchange.asked,
        "gen_ai.response.model": exchange.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens if usage else None,
        "gen_ai.usage.output_tokens": usage.completion_tokens if usage else None,
        "gen_ai.response.finish_reasons": exchange.finish,
        "http.response.status_code": exchange.reply.status or None,
        "hostler.request.id": exchange.id,
        "hostler.protocol": exchange.adapter.name,
        "hostler.client": exchange.client.name,
        "hostler.outcome": exchange.outcome,
        "hostler.backend": target.backend if target else None,
        "hostler.hop": exchange.hop if target else None,
        "hostler.reason": exchange.reason or None,
        "hostler.cost_usd": exchange.cost,
    }
    return Span(
        name=" ".join(filter(None, (exchange.operation.name, exchange.model))),
        span=trace.span,
        parent=trace.parent,
        began=began,
        ended=ended,
        kind="server",
        failed=exchange.reason or exchange.outcome if exchange.outcome in ("failed", "broken") else "",
        attributes={name: value for name, value in told.items() if value is not None},
    )


def _attempt(
    exchange: Exchange, trace: Trace, attempt: Attempt, number: int, calls: Sequence[Call], offset: float, *, last: bool
) -> list[Span]:
    began, ended = attempt.began_at + offset, attempt.began_at + attempt.seconds + offset
    own = new_span()
    where: dict[str, Value] = {"hostler.backend": attempt.target.backend, "gen_ai.request.model": attempt.target.model}
    good = attempt.outcome in ("answered", "client_left", "cancelled", "stopped")
    spans = [
        Span(
            name=f"attempt {number} {attempt.target.backend}", span=own, parent=trace.span, began=began, ended=ended,
            failed="" if good else attempt.outcome, attributes={**where, "hostler.outcome": attempt.outcome},
        )
    ]  # fmt: skip
    at = began
    for name, seconds in (("queue", attempt.queue_s), ("switch", attempt.switch_s)):
        if seconds > 0:
            spans.append(Span(name=name, span=new_span(), parent=own, began=at, ended=min(ended, at + seconds)))
            at += seconds
    for call, following in zip_longest(calls, calls[1:]):
        until = ended if following is None else following.at + offset
        spans.append(
            Span(
                name=f"call {call.backend}", span=call.span, parent=own, began=call.at + offset, ended=until,
                kind="client", attributes=where,
            )
        )  # fmt: skip
    if last and calls and exchange.first_word_at is not None:
        sent, first = calls[-1], exchange.first_word_at + offset
        spans.append(Span(name="prefill", span=new_span(), parent=sent.span, began=sent.at + offset, ended=first))
        spans.append(Span(name="generation", span=new_span(), parent=sent.span, began=first, ended=max(first, ended)))
    return spans


#: What OpenTelemetry calls the operations that it knows.
_OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
