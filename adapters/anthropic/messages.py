"""Anthropic's requests decoded: messages, blocks, tools and settings as a canonical conversation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from hostler.adapters.anthropic.schema import (
    NULL,
    AnthropicBlock,
    AnthropicMessage,
    AnthropicRequest,
    AnthropicSource,
    AnthropicTool,
    AnthropicToolChoice,
)
from hostler.adapters.canonical import ChatMessage, Conversation, Media, Part, Sampling, Text, Tool, ToolCall
from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.progress_removal import without_progress_lines, without_progress_parts
from hostler.adapters.tool_calls import NO_ARGUMENTS, arguments_text

# A line for Anthropic's own accounting at the very beginning, different in each request: it has no meaning for a model,
# and it would keep engines from finding any earlier prompt in their caches.
_ACCOUNTING_LINE = re.compile(r"\A\s*x-anthropic-[a-z-]+:[^\n]*(?:\n|\Z)")

_decode = msgspec.json.Decoder(AnthropicRequest).decode

# Blocks of server-side tools in the history: other models cannot read them.
_SERVER_TOOL_BLOCKS = frozenset({"server_tool_use", "container_upload", "fallback", "compaction"})
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class AnthropicOnly(BadRequest):
    """A valid request that only Anthropic's own servers can serve."""


def decode_body(body: bytes) -> AnthropicRequest:
    """The request as typed values. Raises `BadRequest` naming the invalid field."""
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        # msgspec's message is "Expected `str`, got `int` - at `$.messages[0].role`".
        reason, _, path = str(error).partition(" - at ")
        if path:
            path = _dotted(path.strip("`").removeprefix("$").lstrip("."))
            raise BadRequest(f"{path}: {reason}", param=path) from None
        missing = reason.removeprefix("Object missing required field `").rstrip("`")
        raise BadRequest(f"{missing}: Field required" if missing != reason else reason, param=missing) from None
    except NOT_JSON:
        raise BadRequest("The request body is not valid JSON.") from None


def decode_conversation(body: AnthropicRequest) -> Conversation:
    """The conversation. Raises `BadRequest`, or `AnthropicOnly` for a valid one that other backends cannot serve."""
    for name in ("mcp_servers", "container"):
        if getattr(body, name):
            raise AnthropicOnly(f"{name}: the backend of this model cannot run tools of its own", param=name)
    system, rest = _system_prompt(body.system, body.messages)
    messages = [ChatMessage(role="system", parts=(Text(text=system),))] if system else []
    messages += _messages_of(rest)
    tools = tuple(_tool(tool, index) for index, tool in enumerate(body.tools or ()))
    choice = body.tool_choice or AnthropicToolChoice()
    return Conversation(
        messages=tuple(messages),
        tools=tools,
        tool_choice=_tool_choice(body.tool_choice) if tools else None,
        # In this protocol several calls in one response are allowed by default.
        parallel_tool_calls=not choice.disable_parallel_tool_use if tools else None,
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            max_tokens=body.max_tokens,
            stop=None if body.stop_sequences is None else tuple(body.stop_sequences),
        ),
        thinking=_thinking(body),
    )


def decode_schema(body: AnthropicRequest) -> msgspec.Raw | None:
    """The JSON Schema that the response has to follow, or `None`."""
    wanted = (body.output_config.format if body.output_config else None) or body.output_format
    return None if wanted is None else _raw_or_none(wanted.schema)


def _system_prompt(
    system: str | Sequence[AnthropicBlock] | None, messages: Sequence[AnthropicMessage]
) -> tuple[str, Sequence[AnthropicMessage]]:
    """The system prompt, including system messages at the beginning, and the messages after those."""
    texts = [system] if isinstance(system, str) else _texts(system)
    first = 0
    while first < len(messages) and messages[first].role == "system":
        content = messages[first].content
        texts += [content] if isinstance(content, str) else _texts(content)
        first += 1
    cleaned = (_ACCOUNTING_LINE.sub("", text) for text in texts)
    return "\n\n".join(text for text in cleaned if text.strip()), messages[first:]


def _as_reminder(block: AnthropicBlock) -> AnthropicBlock:
    """A block of a system message in the middle of a conversation, as part of the user's message.

    Most chat templates allow a system message only at the beginning. Moved there, it would change the beginning of the
    prompt and invalidate the engine's cache.
    """
    if block.type != "text" or not (block.text or "").strip():
        return block
    return AnthropicBlock(text=f"<system-reminder>\n{block.text}\n</system-reminder>\n")


def _texts(blocks: Sequence[AnthropicBlock] | None) -> list[str]:
    return [block.text for block in blocks or () if block.text]


def _messages_of(messages: Sequence[AnthropicMessage]) -> Iterable[ChatMessage]:
    """The messages, consecutive ones of one role merged: many chat templates require alternating roles."""
    current: str | None = None
    collected: list[AnthropicBlock] = []
    for index, message in enumerate(messages):
        if message.role not in ("user", "assistant", "system"):
            raise BadRequest(
                f"messages.{index}.role: must be user, assistant or system", param=f"messages.{index}.role"
            )
        role = "user" if message.role == "system" else message.role
        if role != current and current is not None:
            yield from _merged_messages(current, collected)
            collected = []
        current = role
        blocks = [AnthropicBlock(text=message.content)] if isinstance(message.content, str) else message.content or []
        collected += (_as_reminder(block) for block in blocks) if message.role == "system" else blocks
    if current is not None:
        yield from _merged_messages(current, collected)


def _merged_messages(role: str, blocks: Sequence[AnthropicBlock]) -> Iterable[ChatMessage]:
    if role == "assistant":
        yield _assistant_message(blocks)
        return
    parts: list[Part] = []
    for block in blocks:
        if block.type == "tool_result":
            result, media = _tool_result(block)
            yield result
            parts += media
        else:
            parts += _parts(block)
    if parts or not any(block.type == "tool_result" for block in blocks):
        yield ChatMessage(role="user", parts=_joined(parts))


def _assistant_message(blocks: Sequence[AnthropicBlock]) -> ChatMessage:
    parts: list[Part] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    for block in blocks:
        if block.type == "thinking":
            reasoning.append(without_progress_lines(block.thinking or ""))
        elif block.type == "tool_use":
            arguments = arguments_text(block.input) or NO_ARGUMENTS
            calls.append(ToolCall(index=len(calls), id=block.id, name=block.name or "", arguments=arguments))
        elif block.type != "redacted_thinking":
            parts += _parts(block)
    return ChatMessage(
        role="assistant",
        parts=without_progress_parts(_joined(parts)),
        reasoning="\n".join(reasoning) or None,
        tool_calls=tuple(calls),
    )


def _tool_result(block: AnthropicBlock) -> tuple[ChatMessage, list[Part]]:
    """A tool's result as a message of its own, and its media: chat templates take only text there."""
    inner = [AnthropicBlock(text=block.content)] if isinstance(block.content, str) else _blocks(block.content)
    parts = [part for each in inner for part in _parts(each)]
    joined = _joined([part for part in parts if isinstance(part, Text)])
    text = "".join(part.text for part in joined if isinstance(part, Text))
    if block.is_error and "error" not in text[:40].lower():
        text = f"Error: {text}"
    media: list[Part] = [part for part in parts if isinstance(part, Media)]
    if media:
        media.insert(0, Text(text=f"The images in the result of the tool call {block.tool_use_id}:"))
        text = text or "(see the images)"
    return ChatMessage(role="tool", parts=(Text(text=text),), tool_call_id=block.tool_use_id), media


def _parts(block: AnthropicBlock) -> list[Part]:
    kind = block.type
    if kind == "text":
        return [Text(text=block.text or "")]
    if kind == "image" and isinstance(block.source, AnthropicSource):
        return [_image(block.source)]
    if kind == "document" and isinstance(block.source, AnthropicSource):
        return _document(block, block.source)
    if kind == "search_result":
        head = "\n".join(text for text in (block.title, block.source) if isinstance(text, str))
        return [Text(text=head + "\n"), *(part for each in _blocks(block.content) for part in _parts(each))]
    if kind == "tool_reference":
        return [Text(text=f"The tool {block.tool_name} is available.")]
    if kind in _SERVER_TOOL_BLOCKS or kind.endswith("_tool_result"):
        return []
    raise AnthropicOnly(f"messages: content blocks of the type {kind[:50]!r} are not supported", param="messages")


def _image(source: AnthropicSource) -> Media:
    if source.type == "base64" and source.data is not None:
        return Media(kind="image", data=source.data, mime=source.media_type)
    if source.type == "url" and source.url is not None:
        return Media(kind="image", url=source.url)
    raise AnthropicOnly(
        "messages: an image must be base64 data or a URL; stored files are not supported", param="messages"
    )


def _document(block: AnthropicBlock, source: AnthropicSource) -> list[Part]:
    title: list[Part] = [Text(text=f"{block.title}\n")] if block.title else []
    if source.type == "text" and source.data is not None:
        return [*title, Text(text=source.data)]
    if source.type == "content":
        inner = [AnthropicBlock(text=source.content)] if isinstance(source.content, str) else source.content or []
        return [*title, *(part for each in inner for part in _parts(each))]
    raise AnthropicOnly(
        "messages: only plain text documents are supported; send the text of a PDF or images of its pages",
        param="messages",
    )


def _blocks(content: object) -> list[AnthropicBlock]:
    if isinstance(content, list) and all(isinstance(each, AnthropicBlock) for each in content):
        return content
    return []


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts, consecutive texts merged: otherwise they would be concatenated without a space between."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Text) and isinstance(last, Text):
            separated = last.text[-1:].isspace() or part.text[:1].isspace() or not last.text or not part.text
            joined[-1] = Text(text=last.text + ("" if separated else "\n") + part.text)
        else:
            joined.append(part)
    return tuple(part for part in joined if not isinstance(part, Text) or part.text)


def _tool(tool: AnthropicTool, index: int) -> Tool:
    if tool.type not in (None, "custom"):
        raise AnthropicOnly(
            f"tools.{index}: {str(tool.type)[:60]} is one of Anthropic's own tools; the backend of this model supports "
            "only tools with `name` and `input_schema`",
            param=f"tools.{index}.type",
        )
    if not tool.name:
        raise BadRequest(f"tools.{index}.name: Field required", param=f"tools.{index}.name")
    parameters = _raw_or_none(tool.input_schema)
    return Tool(name=tool.name, description=tool.description, parameters=parameters, strict=tool.strict)


def _raw_or_none(raw: msgspec.Raw) -> msgspec.Raw | None:
    # A copy: the decoder's own piece would keep the whole body alive.
    return None if bytes(raw) == NULL else msgspec.Raw(bytes(raw))


def _tool_choice(choice: AnthropicToolChoice | None) -> str | None:
    if choice is None:
        return None
    if choice.type == "tool":
        if not choice.name:
            raise BadRequest("tool_choice.name: Field required", param="tool_choice.name")
        return choice.name
    known = _CHOICES.get(choice.type)
    if known is None:
        raise BadRequest("tool_choice.type: must be auto, any, tool or none", param="tool_choice.type")
    return known


def _thinking(body: AnthropicRequest) -> bool | str:
    # Reasoning is off by default in this protocol.
    if body.thinking is None or body.thinking.type == "disabled":
        return False
    effort = body.output_config.effort if body.output_config else None
    return True if effort is None else _EFFORTS.get(effort, True)


def _dotted(path: str) -> str:
    """`messages[0].role` as Anthropic writes it: `messages.0.role`."""
    return path.replace("[", ".").replace("]", "")
