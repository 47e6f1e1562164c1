"""The JSON of llama-server's own routes as typed values, for the few places that look into it."""

from __future__ import annotations

import msgspec

WIRE = "llamacpp"
JSON = "application/json; charset=utf-8"
NO_ERROR = msgspec.Raw(b"null")


class _LlamaTimings(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer took."""

    cache_n: int = 0
    prompt_ms: float | None = None
    predicted_ms: float | None = None


class LlamaEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a completion, or a whole one, as far as somebody who only forwards it looks."""

    index: int = 0
    stop: bool = False
    stop_type: str | None = None
    tokens_evaluated: int = 0
    tokens_predicted: int = 0
    timings: _LlamaTimings | None = None
    error: msgspec.Raw = NO_ERROR


class LlamaError(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in `error`."""

    message: str = ""
    code: int | None = None
