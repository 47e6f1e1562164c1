"""A whole message out of a stream's events."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.document import NOT_JSON


class MessageFold:
    """Collects the events of one answer."""

    __slots__ = ("_message", "_pieces")

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._pieces: list[list[str]] = []

    def add(self, event: dict[str, Any]) -> None:
        """Takes in one event."""
        kind = event["type"]
        if kind == "message_start":
            self._message = event["message"]
        elif kind == "content_block_start":
            self._message["content"].append(event["content_block"])
            self._pieces.append([])
        elif kind == "content_block_delta":
            delta = event["delta"]
            piece = delta.get("text") or delta.get("thinking") or delta.get("partial_json")
            if piece:
                self._pieces[event["index"]].append(piece)
        elif kind == "message_delta":
            self._message |= event["delta"]
            self._message["usage"] = event["usage"]

    def result(self) -> bytes:
        """The message as JSON."""
        for block, pieces in zip(self._message["content"], self._pieces, strict=True):
            words = "".join(pieces)
            if block["type"] == "tool_use":
                block["input"] = _arguments(words)
            else:
                block[block["type"]] = words
        return msgspec.json.encode(self._message)


def _arguments(words: str) -> dict[str, Any]:
    """A call's arguments. What is no object (cut off at the limit, for one) cannot be told in a whole answer."""
    try:
        return msgspec.json.decode(words, type=dict[str, Any])
    except NOT_JSON:
        return {}
