"""The JSON of OpenAI's protocol as typed values, for the few places that look into it.

Every field is optional: servers differ, and what is not named here is forwarded all the same.
"""

from __future__ import annotations

from typing import Any

import msgspec

WIRE = "openai"
#: OpenAI's responses: spoken by some servers of this kind beside chats.
RESPONSES = "responses"
NO_ERROR = msgspec.Raw(b"null")


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream should be told; `include_usage` asks for a last chunk with the counts."""

    include_usage: bool | None = None


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """llama.cpp's own account of an answer."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float | None = None
    predicted_n: int = 0
    predicted_ms: float | None = None


class ProgressBody(msgspec.Struct, frozen=True, kw_only=True):
    """llama.cpp's account of a prompt that is being read: its length, and how much of it was known already."""

    total: int = 0
    cache: int = 0


class VerboseBody(msgspec.Struct, frozen=True, kw_only=True):
    """What llama.cpp tells for debugging, as far as it is of use: the stop sequence that was met."""

    stopping_word: str | None = None


class TokenDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What kinds of tokens a count is made of."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class UsageBody(msgspec.Struct, frozen=True, kw_only=True):
    """The token counts of chat and completions, and of responses under their other names."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None
    input_tokens_details: TokenDetails | None = None
    output_tokens_details: TokenDetails | None = None
    cost: float | None = None


class FunctionPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A function's name, and its arguments as (a fragment of) JSON text."""

    name: str | None = None
    arguments: str | None = None


class ToolCallPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call, or the next piece of one."""

    index: int = 0
    id: str | None = None
    function: FunctionPiece | None = None


class LogprobPiece(msgspec.Struct, frozen=True, kw_only=True):
    """One token's log probability as chat tells it."""

    token: str = ""
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[LogprobPiece] | None = None


class LogprobsBody(msgspec.Struct, frozen=True, kw_only=True):
    """Chat's log probabilities, and the parallel lists of the older completions."""

    content: list[LogprobPiece] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None


class DeltaBody(msgspec.Struct, frozen=True, kw_only=True):
    """A message or the next piece of one."""

    content: Any = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallPiece] | None = None
    function_call: FunctionPiece | None = None


class ChoiceBody(msgspec.Struct, frozen=True, kw_only=True):
    """One of the alternatives that were asked for."""

    index: int = 0
    delta: DeltaBody | None = None
    message: DeltaBody | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: LogprobsBody | None = None
    stop_reason: Any = None
    matched_stop: Any = None
    error: msgspec.Raw = NO_ERROR


class VectorBody(msgspec.Struct, frozen=True, kw_only=True):
    """One embedding: numbers, or base64 of 32-bit floats in little-endian order."""

    index: int = 0
    embedding: list[float] | str = []


class EmbeddingsBody(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to an embeddings request."""

    data: list[VectorBody]
    usage: UsageBody | None = None


class CountBody(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a question for the number of tokens of a conversation."""

    input_tokens: int


class ResponseBody(msgspec.Struct, frozen=True, kw_only=True):
    """The answer object within an event of the responses stream."""

    usage: UsageBody | None = None
    error: msgspec.Raw = NO_ERROR


class EventBody(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream, or a whole answer."""

    choices: list[ChoiceBody] | None = None
    usage: UsageBody | None = None
    timings: Timings | None = None
    error: msgspec.Raw = NO_ERROR
    type: str | None = None
    response: ResponseBody | None = None
    message: Any = None
    prompt_progress: ProgressBody | None = None
    verbose: VerboseBody | None = msgspec.field(default=None, name="__verbose")


class NoticedChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A choice, as far as somebody who only forwards it looks."""

    finish_reason: str | None = None
    error: msgspec.Raw = NO_ERROR


class NoticedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event, as far as somebody who only forwards it looks."""

    choices: list[NoticedChoice] | None = None
    usage: UsageBody | None = None
    timings: Timings | None = None
    error: msgspec.Raw = NO_ERROR
    type: str | None = None
    response: ResponseBody | None = None
    message: Any = None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in `error`."""

    message: Any = None
    type: Any = None
    code: Any = None
