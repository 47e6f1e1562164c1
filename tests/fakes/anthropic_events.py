"""Answers in Anthropic's protocol, from their chunks."""

from __future__ import annotations

import json
from typing import Any

from hostler.adapters import sse
from hostler.adapters.canonical import Chunk, ToolCall


def content(**fields: Any) -> Chunk:
    return Chunk(wire="openai", raw=b"data: {}\n\n", **fields)


def called(index: int, arguments: str, name: str | None = None, id: str | None = None) -> Chunk:  # noqa: A002
    return content(tool_calls=(ToolCall(index=index, id=id, name=name, arguments=arguments),))


def events(data: bytes) -> list[dict[str, Any]]:
    found = []
    for name, body in sse.iter_events(data):
        event = json.loads(body)
        assert event["type"] == name
        found.append(event)
    return found


def streamed(encoder: Any, *chunks: Chunk) -> list[dict[str, Any]]:
    return events(b"".join([*(encoder.encode(chunk) for chunk in chunks), encoder.finish()]))
