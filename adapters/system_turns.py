"""Joins the system messages at the beginning of a conversation: many chat templates allow one, and only as the first."""

from __future__ import annotations

from collections.abc import Sequence

from hostler.adapters.canonical import ChatMessage, Text

_SYSTEM = frozenset({"system", "developer"})


def with_one_system_turn(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages, with all system and developer messages before the first other one as a single system message."""
    first = next((at for at, message in enumerate(messages) if message.role not in _SYSTEM), len(messages))
    if first < 2:
        return list(messages)
    texts = (part.text for message in messages[:first] for part in message.parts if isinstance(part, Text))
    joined = "\n\n".join(text for text in texts if text.strip())
    others = tuple(part for message in messages[:first] for part in message.parts if not isinstance(part, Text))
    parts = (*([Text(text=joined)] if joined else ()), *others)
    system = [ChatMessage(role="system", parts=parts)] if parts else []
    return [*system, *messages[first:]]
