"""Keeps the gateway's own progress lines out of what a model reads: clients send their history back as it was shown."""

from __future__ import annotations

import re

import msgspec

from hostler.adapters import document
from hostler.adapters.progress import PREFIX

_MARK = PREFIX.encode()
_LINES = re.compile(r"^\[hostler\] [^\n]*(?:\n|\Z)", re.MULTILINE)
_FIELDS = ("reasoning_content", "reasoning")
_decode = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


def thought(reasoning: str) -> str:
    """What the model thought, without what the gateway has shown before it."""
    return _LINES.sub("", reasoning) if PREFIX in reasoning else reasoning


def without_progress(body: bytes) -> bytes:
    """The chat request's body without the progress lines in the reasoning of earlier answers.

    The very same object if there are none, which is found out at the speed of memory.
    """
    if _MARK not in body:
        return body
    raw = document.members(body).get("messages")
    if raw is None:
        return body
    try:
        messages = _decode(raw)
    except msgspec.ValidationError:
        return body
    changed = False
    for message in messages:
        for name in _FIELDS:
            text = message.get(name)
            if text is None or _MARK not in bytes(text):
                continue
            try:
                said = msgspec.json.decode(text, type=str)
            except msgspec.ValidationError:
                continue
            message[name] = msgspec.Raw(msgspec.json.encode(thought(said)))
            changed = True
    return document.patch(body, {"messages": msgspec.json.encode(messages)}) if changed else body
