"""Removes the gateway's progress from the history that clients send back: models must not take it for their own thoughts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import msgspec

from hostler.adapters import json_body
from hostler.adapters.canonical import Part, Text
from hostler.adapters.errors import BadRequest
from hostler.adapters.progress import PREFIX

_MARK = PREFIX.encode()
_LINES = re.compile(r"^\[hostler\] [^\n]*(?:\n|\Z)", re.MULTILINE)
_THOUGHTS = re.compile(r"\A(\s*<think(?:ing)?>)(.*?)(</think(?:ing)?>\s*)", re.DOTALL)
_ASSISTANT, _REASONING = b'"assistant"', b'"reasoning"'
_decode_messages = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_content = msgspec.json.Decoder(str | list[dict[str, msgspec.Raw]]).decode


def without_progress(body: bytes, history: str = "messages") -> bytes:
    """The body of a chat without the gateway's progress in the reasoning of earlier answers, or in `<think>` at the start of
    their content. `history` is the body's member with the messages, or with a response's items.

    Returns the same object if there is none, which one search in the bytes finds out.
    """
    if _MARK not in body:
        return body
    try:
        raw = json_body.members(body).get(history)
        messages = [] if raw is None else _decode_messages(raw)
    except (BadRequest, msgspec.ValidationError):
        return body
    changed = False
    for message in messages:
        for name, clean in _fields(message).items():
            cleaned = _cleaned(message.get(name), clean)
            if cleaned is not None:
                message[name] = cleaned
                changed = True
    return json_body.patch(body, {history: msgspec.json.encode(messages)}) if changed else body


def without_progress_lines(reasoning: str) -> str:
    """The model's own reasoning, without the lines that the gateway has put before it."""
    return _LINES.sub("", reasoning) if PREFIX in reasoning else reasoning


def without_progress_thoughts(content: str) -> str:
    """The content of an earlier answer, without the gateway's lines in the reasoning that the client has put before it.

    Reasoning that is nothing else is removed.
    """
    found = _THOUGHTS.match(content) if PREFIX in content else None
    if found is None or PREFIX not in found[2]:
        return content
    thoughts, rest = _LINES.sub("", found[2]), content[found.end() :]
    return found[1] + thoughts + found[3] + rest if thoughts.strip() else rest


def without_progress_parts(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts of an earlier answer, each text as in `without_progress_thoughts`."""
    return tuple(Text(text=without_progress_thoughts(part.text)) if isinstance(part, Text) else part for part in parts)


_FIELDS: dict[str, Callable[[str], str]] = {
    "reasoning_content": without_progress_lines,
    "reasoning": without_progress_lines,
    "thinking": without_progress_lines,
    "content": without_progress_thoughts,
}
_REASONING_FIELDS: dict[str, Callable[[str], str]] = {
    "content": without_progress_lines,
    "summary": without_progress_lines,
}


def _fields(message: dict[str, msgspec.Raw]) -> dict[str, Callable[[str], str]]:
    """What to remove from the fields of a message, or of a response's item."""
    if bytes(message.get("role", b"")) == _ASSISTANT:
        return _FIELDS
    return _REASONING_FIELDS if bytes(message.get("type", b"")) == _REASONING else {}


def _cleaned(field: msgspec.Raw | None, clean: Callable[[str], str]) -> msgspec.Raw | None:
    """A field, a text or a list of parts with texts, without progress; `None` if there is none in it."""
    if field is None or _MARK not in bytes(field):
        return None
    try:
        content = _decode_content(field)
    except msgspec.ValidationError:
        return None
    if isinstance(content, str):
        cleaned = clean(content)
        return None if cleaned == content else msgspec.Raw(msgspec.json.encode(cleaned))
    texts = [_cleaned(part.get("text"), clean) for part in content]
    if all(text is None for text in texts):
        return None
    for part, text in zip(content, texts, strict=True):
        if text is not None:
            part["text"] = text
    return msgspec.Raw(msgspec.json.encode(content))
