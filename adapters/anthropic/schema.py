"""The JSON of Anthropic's requests and responses as typed values. Unknown fields are ignored."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.error_body import NO_ERROR
from hostler.adapters.lenient import Count

WIRE = "anthropic"
NULL = b"null"


class AnthropicSource(msgspec.Struct, frozen=True, kw_only=True):
    """The data or address of an image or a document."""

    type: str = "base64"
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    content: str | list[AnthropicBlock] | None = None


class AnthropicBlock(msgspec.Struct, frozen=True, kw_only=True):
    """A content block of any type."""

    type: str = "text"
    text: str | None = None
    thinking: str | None = None
    source: AnthropicSource | str | None = None
    title: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")
    tool_use_id: str | None = None
    tool_name: str | None = None
    content: str | list[AnthropicBlock] | dict[str, Any] | None = None
    is_error: bool | None = None


class AnthropicMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    content: str | list[AnthropicBlock] | None = None


class AnthropicTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool. Those with a `type` other than `custom` are defined by Anthropic."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = msgspec.Raw(NULL)
    strict: bool | None = None


class AnthropicToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "auto"
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class AnthropicThinking(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "enabled"
    budget_tokens: int | None = None


class AnthropicFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "json_schema"
    schema: msgspec.Raw = msgspec.Raw(NULL)


class AnthropicOutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    effort: str | None = None
    format: AnthropicFormat | None = None


class AnthropicRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a message, or for its token count."""

    messages: list[AnthropicMessage]
    model: str | None = None
    system: str | list[AnthropicBlock] | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    thinking: AnthropicThinking | None = None
    output_config: AnthropicOutputConfig | None = None
    output_format: AnthropicFormat | None = None
    mcp_servers: list[Any] | None = None
    container: Any = None


class AnthropicUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts. `input_tokens` are those that were not cached."""

    input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    output_tokens: Count | None = None

    def updated(self, later: AnthropicUsage | None) -> AnthropicUsage:
        """These counts, replaced by those of a later event."""
        counts = {} if later is None else msgspec.structs.asdict(later)
        return msgspec.structs.replace(self, **{name: count for name, count in counts.items() if count is not None})


class AnthropicResponseBlock(msgspec.Struct, frozen=True, kw_only=True):
    """A content block of a response, or the start of one."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")


class AnthropicDelta(msgspec.Struct, frozen=True, kw_only=True):
    """The next piece of a block, or the end of the message."""

    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class AnthropicResponseMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The message in `message_start`."""

    usage: AnthropicUsage | None = None


class AnthropicEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""
    index: Count = 0
    message: AnthropicResponseMessage | None = None
    content_block: AnthropicResponseBlock | None = None
    delta: AnthropicDelta | None = None
    usage: AnthropicUsage | None = None
    error: msgspec.Raw = NO_ERROR


class AnthropicResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A whole response: a message, or a token count."""

    error: msgspec.Raw = NO_ERROR
    content: list[AnthropicResponseBlock] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: AnthropicUsage | None = None
    input_tokens: Count | None = None
