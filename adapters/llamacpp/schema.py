"""The JSON of llama-server's own responses as typed values."""

from __future__ import annotations

import msgspec

WIRE = "llamacpp"
JSON = "application/json; charset=utf-8"
NO_ERROR = msgspec.Raw(b"null")


class LlamaEventTimings(msgspec.Struct, frozen=True, kw_only=True):
    cache_n: int = 0
    prompt_ms: float | None = None
    predicted_ms: float | None = None


class LlamaEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of an event, or of a whole completion, that matter if it is only forwarded."""

    index: int = 0
    stop: bool = False
    stop_type: str | None = None
    tokens_evaluated: int = 0
    tokens_predicted: int = 0
    timings: LlamaEventTimings | None = None
    error: msgspec.Raw = NO_ERROR


class LlamaError(msgspec.Struct, frozen=True, kw_only=True):
    message: str = ""
    code: int | None = None
