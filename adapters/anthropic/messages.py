"""Anthropic's requests understood in full: turns, blocks, tools and settings as a canonical conversation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from hostler.adapters import json_body
from hostler.adapters.anthropic.schema import NULL, Block, ChoiceBody, MessageBody, RequestBody, Source, ToolBody
from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.types import ChatMessage, Conversation, Media, Part, Sampling, Text, Tool, ToolCall

_UNSIGNED = re.compile(rb'"signature"\s*:\s*(?:""|null)')
_messages = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_history_blocks = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Block(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""
    signature: str | None = None


_block = msgspec.json.Decoder(_Block).decode


def without_unsigned(body: bytes) -> bytes:
    """The request's body without thoughts that nobody signed, and without turns that held nothing else.

    The very same object if there are none, which is found out at the speed of memory.
    """
    if not _UNSIGNED.search(body):
        return body
    try:
        messages = _messages(json_body.members(body)["messages"])
    except (msgspec.ValidationError, KeyError):
        return body
    kept: list[dict[str, msgspec.Raw]] = []
    changed = False
    for message in messages:
        content = bytes(message.get("content", b""))
        if not content.startswith(b"["):
            kept.append(message)
            continue
        blocks = _history_blocks(content)
        signed = [block for block in blocks if not _is_unsigned(block)]
        if len(signed) == len(blocks):
            kept.append(message)
            continue
        changed = True
        if signed:
            kept.append({**message, "content": msgspec.Raw(msgspec.json.encode(signed))})
    return json_body.patch(body, {"messages": msgspec.json.encode(kept)}) if changed else body


def _is_unsigned(raw: msgspec.Raw) -> bool:
    try:
        block = _block(raw)
    except msgspec.ValidationError:
        return False
    return block.type == "thinking" and not block.signature


# A line for Anthropic's own accounting, in front of everything else and different in each request: it tells a model
# nothing, and with it no prompt ever begins like the one before, so that engines read all of it again.
_ACCOUNTING = re.compile(r"\A\s*x-anthropic-[a-z-]+:[^\n]*(?:\n|\Z)")


def system_prompt(
    system: str | Sequence[Block] | None, messages: Sequence[MessageBody]
) -> tuple[str, Sequence[MessageBody]]:
    """The system prompt with what stands in system turns before the first other turn, and the turns after those."""
    texts = [system] if isinstance(system, str) else _texts(system)
    first = 0
    while first < len(messages) and messages[first].role == "system":
        content = messages[first].content
        texts += [content] if isinstance(content, str) else _texts(content)
        first += 1
    cleaned = (_ACCOUNTING.sub("", text) for text in texts)
    return "\n\n".join(text for text in cleaned if text.strip()), messages[first:]


def reminder(block: Block) -> Block:
    """A block of a system turn in the middle of a conversation, as a part of the user's turn.

    Most chat templates allow a system prompt only at the beginning and refuse the request otherwise. Moved there, it
    would change the beginning of the prompt, which would have to be read anew; here it changes only the end.
    """
    if block.type != "text" or not (block.text or "").strip():
        return block
    return Block(text=f"<system-reminder>\n{block.text}\n</system-reminder>\n")


def _texts(blocks: Sequence[Block] | None) -> list[str]:
    return [block.text for block in blocks or () if block.text]


_decode = msgspec.json.Decoder(RequestBody).decode

# What a model's own server-side tools left in the history: nothing that another model could read.
_TRACES = frozenset({"server_tool_use", "container_upload", "fallback", "compaction"})
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Beyond(BadRequest):
    """What only Anthropic's own servers can read or do: no mistake of the client's, but nothing for other models."""


def read(body: bytes) -> RequestBody:
    """The request as typed values. Raises `BadRequest` naming the field that cannot be understood."""
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        # msgspec says "Expected `str`, got `int` - at `$.messages[0].role`".
        reason, _, place = str(error).partition(" - at ")
        if place:
            place = _dotted(place.strip("`").removeprefix("$").lstrip("."))
            raise BadRequest(f"{place}: {reason}", param=place) from None
        missing = reason.removeprefix("Object missing required field `").rstrip("`")
        raise BadRequest(f"{missing}: Field required" if missing != reason else reason, param=missing) from None
    except NOT_JSON:
        raise BadRequest("The request body is not valid JSON.") from None


def conversation(body: RequestBody) -> Conversation:
    """The conversation. Raises `BadRequest` for a mistake, `Beyond` for what other models cannot read or do."""
    system, turns = system_prompt(body.system, body.messages)
    messages = [ChatMessage(role="system", parts=(Text(text=system),))] if system else []
    messages += _turns(turns)
    tools = tuple(_tool(tool, place) for place, tool in enumerate(body.tools or ()))
    choice = body.tool_choice or ChoiceBody()
    return Conversation(
        messages=tuple(messages),
        tools=tools,
        tool_choice=_choice(body.tool_choice) if tools else None,
        # Several calls in one answer are the rule in this protocol, unless they are forbidden.
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


def schema(body: RequestBody) -> msgspec.Raw | None:
    """The JSON Schema that the answer shall follow, or `None`."""
    wanted = (body.output_config.format if body.output_config else None) or body.output_format
    return None if wanted is None else _given(wanted.schema)


def _turns(turns: Sequence[MessageBody]) -> Iterable[ChatMessage]:
    """The turns, those of one side in a row as one: many chat templates insist on alternating ones."""
    side: str | None = None
    collected: list[Block] = []
    for place, turn in enumerate(turns):
        if turn.role not in ("user", "assistant", "system"):
            raise BadRequest(
                f"messages.{place}.role: must be user, assistant or system", param=f"messages.{place}.role"
            )
        role = "user" if turn.role == "system" else turn.role
        if role != side and side is not None:
            yield from _turn(side, collected)
            collected = []
        side = role
        blocks = [Block(text=turn.content)] if isinstance(turn.content, str) else turn.content or []
        collected += (reminder(block) for block in blocks) if turn.role == "system" else blocks
    if side is not None:
        yield from _turn(side, collected)


def _turn(role: str, blocks: Sequence[Block]) -> Iterable[ChatMessage]:
    if role == "assistant":
        yield _answer(blocks)
        return
    parts: list[Part] = []
    for block in blocks:
        if block.type == "tool_result":
            result, media = _result(block)
            yield result
            parts += media
        else:
            parts += _parts(block)
    if parts or not any(block.type == "tool_result" for block in blocks):
        yield ChatMessage(role="user", parts=_joined(parts))


def _answer(blocks: Sequence[Block]) -> ChatMessage:
    parts: list[Part] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for block in blocks:
        if block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type == "tool_use":
            arguments = bytes(block.input)
            written = "{}" if arguments == NULL else arguments.decode()
            calls.append(ToolCall(index=len(calls), id=block.id, name=block.name or "", arguments=written))
        elif block.type != "redacted_thinking":
            parts += _parts(block)
    return ChatMessage(
        role="assistant", parts=_joined(parts), reasoning="\n".join(thoughts) or None, tool_calls=tuple(calls)
    )


def _result(block: Block) -> tuple[ChatMessage, list[Part]]:
    """A tool's result as a message of its own, and what it holds besides text: templates take only text there."""
    inner = [Block(text=block.content)] if isinstance(block.content, str) else _blocks(block.content)
    parts = [part for each in inner for part in _parts(each)]
    joined = _joined([part for part in parts if isinstance(part, Text)])
    words = "".join(part.text for part in joined if isinstance(part, Text))
    if block.is_error and "error" not in words[:40].lower():
        words = f"Error: {words}"
    media: list[Part] = [part for part in parts if isinstance(part, Media)]
    if media:
        media.insert(0, Text(text=f"The images in the result of the tool call {block.tool_use_id}:"))
        words = words or "(see the images)"
    return ChatMessage(role="tool", parts=(Text(text=words),), tool_call_id=block.tool_use_id), media


def _parts(block: Block) -> list[Part]:
    kind = block.type
    if kind == "text":
        return [Text(text=block.text or "")]
    if kind == "image" and isinstance(block.source, Source):
        return [_image(block.source)]
    if kind == "document" and isinstance(block.source, Source):
        return _document(block, block.source)
    if kind == "search_result":
        head = "\n".join(text for text in (block.title, block.source) if isinstance(text, str))
        return [Text(text=head + "\n"), *(part for each in _blocks(block.content) for part in _parts(each))]
    if kind == "tool_reference":
        return [Text(text=f"The tool {block.tool_name} is available.")]
    if kind in _TRACES or kind.endswith("_tool_result"):
        return []
    raise Beyond(f"messages: a content block of the type {kind[:50]!r} is not understood here", param="messages")


def _image(source: Source) -> Media:
    if source.type == "base64" and source.data is not None:
        return Media(kind="image", data=source.data, mime=source.media_type)
    if source.type == "url" and source.url is not None:
        return Media(kind="image", url=source.url)
    raise Beyond(
        "messages: an image must be given as base64 data or as a URL; there are no stored files here", param="messages"
    )


def _document(block: Block, source: Source) -> list[Part]:
    title: list[Part] = [Text(text=f"{block.title}\n")] if block.title else []
    if source.type == "text" and source.data is not None:
        return [*title, Text(text=source.data)]
    if source.type == "content":
        inner = [Block(text=source.content)] if isinstance(source.content, str) else source.content or []
        return [*title, *(part for each in inner for part in _parts(each))]
    raise Beyond(
        "messages: documents are read here as plain text only; send a PDF's text or images of its pages",
        param="messages",
    )


def _blocks(content: object) -> list[Block]:
    if isinstance(content, list) and all(isinstance(each, Block) for each in content):
        return content
    return []


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts, texts in a row as one: apart they would be run together without a space between."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Text) and isinstance(last, Text):
            apart = last.text[-1:].isspace() or part.text[:1].isspace() or not last.text or not part.text
            joined[-1] = Text(text=last.text + ("" if apart else "\n") + part.text)
        else:
            joined.append(part)
    return tuple(part for part in joined if not isinstance(part, Text) or part.text)


def _tool(tool: ToolBody, place: int) -> Tool:
    if tool.type not in (None, "custom"):
        raise Beyond(
            f"tools.{place}: {str(tool.type)[:60]} is a tool of Anthropic's own; the models here have only the tools "
            "that the client brings along, with `name` and `input_schema`",
            param=f"tools.{place}.type",
        )
    if not tool.name:
        raise BadRequest(f"tools.{place}.name: Field required", param=f"tools.{place}.name")
    return Tool(name=tool.name, description=tool.description, parameters=_given(tool.input_schema))


def _given(raw: msgspec.Raw) -> msgspec.Raw | None:
    # The decoder's own piece keeps the whole body alive.
    return None if bytes(raw) == NULL else msgspec.Raw(bytes(raw))


def _choice(choice: ChoiceBody | None) -> str | None:
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


def _thinking(body: RequestBody) -> bool | str:
    # In this protocol models think when they are asked to: a client that did not ask expects the answer first.
    if body.thinking is None or body.thinking.type == "disabled":
        return False
    effort = body.output_config.effort if body.output_config else None
    return True if effort is None else _EFFORTS.get(effort, True)


def _dotted(place: str) -> str:
    """`messages[0].role` as Anthropic writes it: `messages.0.role`."""
    return place.replace("[", ".").replace("]", "")
