"""Keeps thoughts that other models had from Anthropic's servers: they check each one's signature and refuse the request."""

from __future__ import annotations

import re

import msgspec

from hostler.adapters import document

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
        messages = _messages(document.members(body)["messages"])
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
    return document.patch(body, {"messages": msgspec.json.encode(kept)}) if changed else body


def _is_unsigned(raw: msgspec.Raw) -> bool:
    try:
        block = _block(raw)
    except msgspec.ValidationError:
        return False
    return block.type == "thinking" and not block.signature
