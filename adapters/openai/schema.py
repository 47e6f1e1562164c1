"""The JSON of OpenAI's responses as typed values.

Every field is optional: servers differ, and fields that are not listed here are forwarded all the same.
"""

from __future__ import annotations

from typing import Any

import msgspec

WIRE = "openai"
#: The wire name of the responses API, which some servers of this protocol have beside chat.
RESPONSES = "responses"
NULL = b"null"
NO_ERROR = msgspec.Raw(NULL)


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`include_usage` asks for a last chunk with the token counts."""

    include_usage: bool | None = None


class LlamaTimings(msgspec.Struct, frozen=True, kw_only=True):
    """llama.cpp's token counts and times in milliseconds."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float | None = None
    predicted_n: int = 0
    predicted_ms: float | None = None


class PromptProgress(msgspec.Struct, frozen=True, kw_only=True):
    """llama.cpp's progress while it processes a prompt: its length, and how much of it was cached."""

    total: int = 0
    cache: int = 0


class VerboseDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The part of llama.cpp's debugging output that is used: the stop sequence that was hit."""

    stopping_word: str | None = None


class TokenDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class OpenAIUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The token counts of chat and completions, and of the responses API under its own names."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None
    input_tokens_details: TokenDetails | None = None
    output_tokens_details: TokenDetails | None = None
    cost: float | None = None


class OpenAIFunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """`arguments` is JSON text, or a fragment of it."""

    name: str | None = None
    arguments: str | None = None


class OpenAIToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call, or the next piece of one in a stream."""

    index: int = 0
    id: str | None = None
    function: OpenAIFunctionCall | None = None


class OpenAILogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str = ""
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[OpenAILogprob] | None = None


class OpenAILogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Chat's log probabilities in `content`, those of completions in parallel lists."""

    content: list[OpenAILogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None


class OpenAIDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A message, or the next piece of one in a stream."""

    content: Any = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[OpenAIToolCall] | None = None
    function_call: OpenAIFunctionCall | None = None


class OpenAIChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    delta: OpenAIDelta | None = None
    message: OpenAIDelta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: OpenAILogprobs | None = None
    stop_reason: Any = None
    matched_stop: Any = None
    error: msgspec.Raw = NO_ERROR


class OpenAIEmbedding(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers, or base64 of 32-bit little-endian floats."""

    index: int = 0
    embedding: list[float] | str = []


class OpenAIEmbeddings(msgspec.Struct, frozen=True, kw_only=True):
    data: list[OpenAIEmbedding]
    usage: OpenAIUsage | None = None


class OpenAITokenCount(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/chat/completions/input_tokens`."""

    input_tokens: int


class ResponsesObject(msgspec.Struct, frozen=True, kw_only=True):
    """The response object within an event of a responses stream."""

    usage: OpenAIUsage | None = None
    error: msgspec.Raw = NO_ERROR


class OpenAIEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a stream, or a whole response."""

    choices: list[OpenAIChoice] | None = None
    usage: OpenAIUsage | None = None
    timings: LlamaTimings | None = None
    error: msgspec.Raw = NO_ERROR
    type: str | None = None
    response: ResponsesObject | None = None
    message: Any = None
    prompt_progress: PromptProgress | None = None
    verbose: VerboseDetails | None = msgspec.field(default=None, name="__verbose")


class ChoiceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a choice that matter if it is only forwarded."""

    finish_reason: str | None = None
    error: msgspec.Raw = NO_ERROR


class EventSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of an event that matter if it is only forwarded."""

    choices: list[ChoiceSummary] | None = None
    usage: OpenAIUsage | None = None
    timings: LlamaTimings | None = None
    error: msgspec.Raw = NO_ERROR
    type: str | None = None
    response: ResponsesObject | None = None
    message: Any = None


class OpenAIError(msgspec.Struct, frozen=True, kw_only=True):
    message: Any = None
    type: Any = None
    code: Any = None
