"""Content blocks are written one after the other, whatever order their pieces come in."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.anthropic_events import called, content, events, streamed

from hostler.adapters.canonical import Chunk


def tools_of(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The name and arguments of each call. Asserts that blocks do not overlap."""
    tools: list[tuple[str, str]] = []
    opened: int | None = None
    for event in found:
        if event["type"] == "content_block_start":
            assert opened is None
            opened = event["index"]
            if event["content_block"]["type"] == "tool_use":
                tools.append((event["content_block"]["name"], ""))
        elif event["type"] == "content_block_delta":
            assert event["index"] == opened
            if event["delta"]["type"] == "input_json_delta":
                tools[-1] = (tools[-1][0], tools[-1][1] + event["delta"]["partial_json"])
        elif event["type"] == "content_block_stop":
            assert event["index"] == opened
            opened = None
    assert opened is None
    return tools


@pytest.mark.parametrize(
    "pieces",
    [
        [called(0, '{"x":', "a"), called(0, "1}"), called(1, '{"y":', "b"), called(1, "2}")],
        [called(0, "", "a"), called(1, "", "b"), called(0, '{"x":'), called(1, '{"y":2}'), called(0, "1}")],
        [called(0, '{"x":', "a"), called(1, '{"y":2}', "b"), called(0, "1}")],
        [content(tool_calls=(*called(0, '{"x":1}', "a").tool_calls, *called(1, '{"y":2}', "b").tool_calls))],
    ],
    ids=["in order", "mixed", "overlapping", "at once"],
)
def test_several_calls_become_consecutive_blocks(encoder: Any, pieces: list[Chunk]) -> None:
    found = streamed(encoder(), *pieces, content(finish="tool_calls"))
    assert tools_of(found) == [("a", '{"x":1}'), ("b", '{"y":2}')]
    ids = [e["content_block"]["id"] for e in found if e["type"] == "content_block_start"]
    assert len(set(ids)) == 2


def test_text_waits_for_an_incomplete_call(encoder: Any) -> None:
    found = streamed(
        encoder(),
        called(0, '{"x":', "a"),
        content(text="so"),
        called(0, "1}"),
        content(text="!"),
        content(finish="stop"),
    )
    assert tools_of(found) == [("a", '{"x":1}')]
    texts = [e["delta"]["text"] for e in found if e["type"] == "content_block_delta" and "text" in e["delta"]]
    assert "".join(texts) == "so!"


def test_arguments_are_streamed_as_they_come(encoder: Any) -> None:
    response = encoder()
    response.encode(called(0, "", "look", "t"))
    assert events(response.encode(called(0, '{"a"')))[0]["delta"] == {
        "type": "input_json_delta",
        "partial_json": '{"a"',
    }
