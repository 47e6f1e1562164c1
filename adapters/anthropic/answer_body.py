"""The JSON of Anthropic's answers as typed values, for the few places that look into it."""

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
