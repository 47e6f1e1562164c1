"""The JSON of OpenAI's responses as typed values.

Every field is optional: servers differ, and fields that are not listed here are forwarded all the same.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.error_body import NO_ERROR
from hostler.adapters.lenient import Amount, Count, Numbers

WIRE = "openai"
#: The wire name of the responses API, which some servers of this protocol have beside chat.
RESPONSES = "responses"

#: The wire name of chats with custom tools, which some servers of this protocol do not know.
CUSTOM_CHAT = "chat with custom tools"
NULL = b"null"
#: Finish reasons of answers that the server gave up; SGLang and vLLM abort.
FAILED_FINISHES = frozenset({"error", "abort"})
#: The default of a field whose absence shows that a response is none.
NO_CONTENT = msgspec.Raw(b"")


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`include_usage` asks for a last chunk with the token counts."""

    include_usage: bool | None = None


class LlamaTimings(msgspec.Struct, frozen=True, kw_only=True):
    """llama.cpp's token counts and times in milliseconds."""

    cache_n: Count = 0
    prompt_n: Count = 0
    prompt_ms: Amount | None = None
    predicted_n: Count = 0
    predicted_ms: Amount | None = None


class PromptProgress(msgspec.Struct, frozen=True, kw_only=True):
    """llama.cpp's progress while it processes a prompt, in tokens: its length, how much of it was cached, and how much is
    done, the cached part included."""

    total: Count = 0
    cache: Count = 0
    processed: Count = 0
    time_ms: Amount | None = None


class VerboseDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The part of llama.cpp's debugging output that is used: the stop sequence that was hit."""

    stopping_word: str | None = None


class TokenDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: Count | None = None
    reasoning_tokens: Count | None = None


class OpenAIUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The token counts of chat and completions, and of the responses API under its own names."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None
    input_tokens_details: TokenDetails | None = None
    output_tokens_details: TokenDetails | None = None
    cost: Amount | None = None


class OpenAIFunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """`arguments` is JSON text, or a fragment of it; some servers send an object. `adapters/tool_calls.py` reads it."""

    name: Any = None
    arguments: Any = None


class OpenAIToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call, or the next piece of one in a stream. Some servers leave out `function` and have its fields here."""

    index: Any = None
    id: Any = None
    function: OpenAIFunctionCall | None = None
    name: Any = None
    arguments: Any = None


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
    tool_calls: list[OpenAIToolCall] | OpenAIToolCall | None = None
    function_call: OpenAIFunctionCall | None = None


class OpenAIChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: Count = 0
    delta: OpenAIDelta | None = None
    message: OpenAIDelta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: OpenAILogprobs | None = None
    stop_reason: Any = None
    matched_stop: Any = None
    error: msgspec.Raw = NO_ERROR


class OpenAIEmbedding(msgspec.Struct, frozen=True, kw_only=True):
    """`embedding`: numbers, or base64 of 32-bit little-endian floats."""

    index: Any = 0
    embedding: msgspec.Raw = msgspec.Raw(b"[]")


class OpenAIVector(msgspec.Struct, frozen=True):
    numbers: Numbers | str


class OpenAIEmbeddings(msgspec.Struct, frozen=True, kw_only=True):
    """A vector can be millions of bytes, so that each is decoded by itself."""

    data: list[OpenAIEmbedding]
    usage: msgspec.Raw = msgspec.Raw(b"null")


class RankedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document in a reranker's response: its score under either name."""

    relevance_score: Any = None
    score: Any = None


class OpenAITokenCount(msgspec.Struct, frozen=True, kw_only=True):
    """The response of `/chat/completions/input_tokens`."""

    input_tokens: Count


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
    x_hostler: msgspec.Raw = NO_CONTENT
    verbose: VerboseDetails | None = msgspec.field(default=None, name="__verbose")


class NextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What shows that the next piece of a message has text, and no tool call. Anything but text is no next token, so that
    no lists and objects are made of what a backend sends."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class NextChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What shows that a choice of a stream goes on."""

    finish_reason: str | None = None
    text: str | None = None
    delta: NextDelta | None = None
    error: msgspec.Raw = NO_ERROR


class NextEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What shows that an event is the next token and nothing else; decoded for every token that is forwarded."""

    choices: list[NextChoice] | None = None
    usage: OpenAIUsage | None = None
    timings: LlamaTimings | None = None
    error: msgspec.Raw = NO_ERROR
    type: str | None = None
    prompt_progress: msgspec.Raw = NO_CONTENT
    x_hostler: msgspec.Raw = NO_CONTENT


class ChoiceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a choice that matter if it is only forwarded."""

    index: Count = 0
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
    prompt_progress: PromptProgress | None = None
    x_hostler: msgspec.Raw = NO_CONTENT


class ResponseSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What shows that a whole response is one: the field in which its operation has the content."""

    choices: list[WholeChoice] | None = None
    data: msgspec.Raw = NO_CONTENT
    results: msgspec.Raw = NO_CONTENT
    images: msgspec.Raw = NO_CONTENT
    output: msgspec.Raw = NO_CONTENT
    status: str | None = None
    background: bool | None = None
    input_tokens: Count | None = None
    usage: OpenAIUsage | None = None
    timings: LlamaTimings | None = None
    error: msgspec.Raw = NO_ERROR
    object: str | None = None


class WholeChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A choice of a whole response, which has a message or a text."""

    finish_reason: str | None = None
    message: msgspec.Raw = NO_CONTENT
    text: msgspec.Raw = NO_CONTENT
    error: msgspec.Raw = NO_ERROR
