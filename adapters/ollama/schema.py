"""Ollama's name, version and media types, and the JSON of its responses as typed values."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.error_body import NO_ERROR
from hostler.adapters.lenient import Count, Numbers, Vectors

WIRE = "ollama"

#: The version that clients see; some of them require a minimum.
VERSION = "0.40.12"

JSON = "application/json; charset=utf-8"
LINES = "application/x-ndjson"
PLAIN = "text/plain; charset=utf-8"


class OllamaFunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """`arguments` is a JSON object, from other servers than Ollama also its text."""

    name: Any = None
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class OllamaToolCall(msgspec.Struct, frozen=True, kw_only=True):
    id: Any = None
    function: OllamaFunctionCall = OllamaFunctionCall()


class OllamaLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | None = None
    top_logprobs: list[OllamaLogprob] | None = None


class OllamaMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message, or the next piece of one."""

    content: str | None = None
    thinking: str | None = None
    tool_calls: list[OllamaToolCall] | None = None


class OllamaResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a stream, or a whole response: of chat with `message`, generate `response`, embed `embeddings`."""

    message: OllamaMessage | None = None
    response: str | None = None
    thinking: str | None = None
    tool_calls: list[OllamaToolCall] | None = None
    logprobs: list[OllamaLogprob] | None = None
    embeddings: Vectors | None = None
    embedding: Numbers | None = None
    done: bool | None = None
    done_reason: str | None = None
    prompt_eval_count: Count = 0
    prompt_eval_cached_count: Count = 0
    prompt_eval_duration: Count = 0
    eval_count: Count = 0
    eval_duration: Count = 0
    error: msgspec.Raw = NO_ERROR
