"""The JSON of Anthropic's requests as typed values. Unknown fields are read over: clients send many."""

from __future__ import annotations

from typing import Any

import msgspec


class AnswerUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The token counts of an answer. `input_tokens` are those that no cache held."""

    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None

    def then(self, later: AnswerUsage | None) -> AnswerUsage:
        """These counts, with those that a later event tells in their place."""
        told = {} if later is None else msgspec.structs.asdict(later)
        return msgspec.structs.replace(self, **{name: count for name, count in told.items() if count is not None})


class AnswerBlock(msgspec.Struct, frozen=True, kw_only=True):
    """A block of an answer, or its beginning."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")


class DeltaBody(msgspec.Struct, frozen=True, kw_only=True):
    """The next piece of a block, or how the answer ended."""

    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The message that a stream begins with, as far as it is looked into."""

    usage: AnswerUsage | None = None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in `error`."""

    type: Any = None
    message: Any = None


class EventBody(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream."""

    type: str = ""
    index: int = 0
    message: AnswerMessage | None = None
    content_block: AnswerBlock | None = None
    delta: DeltaBody | None = None
    usage: AnswerUsage | None = None
    error: ErrorBody | None = None


class WholeBody(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer: a message, or a number of tokens."""

    content: list[AnswerBlock] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: AnswerUsage | None = None
    input_tokens: int | None = None


WIRE = "anthropic"
NULL = b"null"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where an image or a document comes from."""

    type: str = "base64"
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    content: str | list[Block] | None = None


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a message, of any type."""

    type: str = "text"
    text: str | None = None
    thinking: str | None = None
    source: Source | str | None = None
    title: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")
    tool_use_id: str | None = None
    tool_name: str | None = None
    content: str | list[Block] | dict[str, Any] | None = None
    is_error: bool | None = None


class MessageBody(msgspec.Struct, frozen=True, kw_only=True):
    """One turn."""

    role: str
    content: str | list[Block] | None = None


class ToolBody(msgspec.Struct, frozen=True, kw_only=True):
    """A tool. Those with a `type` of their own are run, or at least defined, by Anthropic."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = msgspec.Raw(NULL)


class ChoiceBody(msgspec.Struct, frozen=True, kw_only=True):
    """Whether and which tool is to be used."""

    type: str = "auto"
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingBody(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model shall think first."""

    type: str = "enabled"
    budget_tokens: int | None = None


class FormatBody(msgspec.Struct, frozen=True, kw_only=True):
    """The form that the answer must have."""

    type: str = "json_schema"
    schema: msgspec.Raw = msgspec.Raw(NULL)


class OutputBody(msgspec.Struct, frozen=True, kw_only=True):
    """How hard to try, and the answer's form."""

    effort: str | None = None
    format: FormatBody | None = None


class RequestBody(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a message, or for the number of tokens it would take."""

    messages: list[MessageBody]
    model: str | None = None
    system: str | list[Block] | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ChoiceBody | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    thinking: ThinkingBody | None = None
    output_config: OutputBody | None = None
    output_format: FormatBody | None = None
