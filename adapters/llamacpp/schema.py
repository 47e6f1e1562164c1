"""The JSON of llama-server's own responses as typed values."""

from __future__ import annotations

import msgspec

from hostler.adapters.error_body import NO_ERROR
from hostler.adapters.lenient import Amount, Count
from hostler.adapters.openai.schema import NO_CONTENT, PromptProgress

WIRE = "llamacpp"
JSON = "application/json; charset=utf-8"


class LlamaEventTimings(msgspec.Struct, frozen=True, kw_only=True):
    cache_n: Count = 0
    prompt_ms: Amount | None = None
    predicted_ms: Amount | None = None


class LlamaEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of an event, or of a whole completion, that matter if it is only forwarded."""

    index: Count = 0
    content: msgspec.Raw = NO_CONTENT
    stop: bool = False
    stop_type: str | None = None
    tokens_evaluated: Count = 0
    tokens_predicted: Count = 0
    timings: LlamaEventTimings | None = None
    prompt_progress: PromptProgress | None = None
    error: msgspec.Raw = NO_ERROR
