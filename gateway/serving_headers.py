"""The `X-Hostler-*` headers of a response, which describe how its request was served."""

from __future__ import annotations

from functools import lru_cache

from hostler.gateway.context import RequestContext
from hostler.gateway.events import printable
from hostler.gateway.response import Headers


class ServingHeaders:
    """The headers that describe how a request was served, as far as it is known when they are sent.

    `early`: the request still waits, and another backend may answer it.
    """

    __slots__ = ("_request_id", "context")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id.encode("latin-1")
        self.context: RequestContext | None = None

    def __call__(self, *, early: bool = False) -> Headers:
        facts, context = [(b"x-request-id", self._request_id)], self.context
        if context is not None and context.limit_headers:
            facts += context.limit_headers
        if early or context is None or (attempt := context.attempt) is None:
            return facts
        queue_s, switch_s = context.waits
        facts += _target_headers(attempt.target.backend, attempt.target.model, attempt.hop)
        if queue_s or switch_s:
            facts.append((b"x-hostler-queue-ms", b"%d" % round(queue_s * 1000)))
            facts.append((b"x-hostler-switch-ms", b"%d" % round(switch_s * 1000)))
        else:
            facts += _NO_WAIT
        if context.reason:
            why = printable(" ".join(context.reason.split())[:200])
            facts.append((b"x-hostler-reason", why.encode("latin-1", "replace")))
        return facts


_NO_WAIT = ((b"x-hostler-queue-ms", b"0"), (b"x-hostler-switch-ms", b"0"))


@lru_cache(maxsize=256)
def _target_headers(backend: str, model: str, hop: int) -> tuple[tuple[bytes, bytes], ...]:
    facts = ((b"x-hostler-backend", backend), (b"x-hostler-model", model), (b"x-hostler-hop", str(hop)))
    return tuple((name, printable(value).encode("latin-1", "replace")) for name, value in facts)
