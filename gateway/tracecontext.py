"""Whose trace a request belongs to: W3C's `traceparent`, read and written. Nothing is recorded here."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

import msgspec

#: version "00": trace, parent, flags. Later versions may say more behind it, which is none of our business.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01
_LONGEST_STATE = 512


class Call(msgspec.Struct):
    """A request to a backend: when it was sent, and the span that it is to be part of there."""

    backend: str
    at: float
    span: str


class Trace(msgspec.Struct, eq=False):
    """The trace of a request on its way. `parent` is the client's span, `span` our own; all in hexadecimal digits.

    One that is not `sampled` is passed on and not recorded. `state` is what other systems say among themselves.
    """

    trace: str
    span: str
    sampled: bool
    parent: str | None = None
    state: str = ""
    calls: list[Call] = msgspec.field(default_factory=list)

    def call(self, backend: str, at: float) -> list[tuple[str, str]]:
        """A request goes to a backend: the headers that tell it of the trace."""
        call = Call(backend, at, new_span())
        self.calls.append(call)
        headers = [("traceparent", f"00-{self.trace}-{call.span}-{'01' if self.sampled else '00'}")]
        if self.state:
            headers.append(("tracestate", self.state))
        return headers


#: The trace of the request that this task is at.
CURRENT: ContextVar[Trace | None] = ContextVar("trace", default=None)


def begin(traceparent: str, tracestate: str, *, chosen: bool) -> Trace:
    """The trace that a client names, or a new one if it names none that can be understood.

    Whether it is recorded is the client's decision, and `chosen` for one that begins here.
    """
    found = _TRACEPARENT.fullmatch(traceparent.strip())
    if found is None or (found[1] == "00" and found[5]):
        return Trace(trace=secrets.token_hex(16), span=new_span(), sampled=chosen)
    plain = tracestate.isascii() and tracestate.isprintable() and len(tracestate) <= _LONGEST_STATE
    return Trace(
        trace=found[2],
        span=new_span(),
        sampled=bool(int(found[4], 16) & _SAMPLED),
        parent=found[3],
        state=tracestate.strip() if plain else "",
    )


def new_span() -> str:
    """An id that nobody else has."""
    return secrets.token_hex(8)
