"""The gateway's progress is removed from the history, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Adapter, Incoming, Upstream
from hostler.adapters.canonical import ChatRequest
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.adapters.progress_removal import without_progress, without_progress_lines, without_progress_thoughts

SHOWN = "[hostler] loading b: 40% (12 s left)\n[hostler] starting b (1 s left)\n"


def cleaned(**message: Any) -> Any:
    body = json.dumps({"model": "m", "messages": [{"role": "assistant", **message}], "x": 1}).encode()
    found = json.loads(without_progress(body))
    assert (found["model"], found["x"]) == ("m", 1)
    del found["messages"][0]["role"]
    return found["messages"][0]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_lines_in_the_reasoning_are_removed(field: str) -> None:
    assert cleaned(**{field: SHOWN + "Hm.\n", "content": "Hi"}) == {field: "Hm.\n", "content": "Hi"}
    assert without_progress_lines("[hostler] x") == ""


@pytest.mark.parametrize("tag", ["think", "thinking"])
def test_lines_in_reasoning_within_the_content_are_removed(tag: str) -> None:
    content = f"<{tag}>\n{SHOWN}Hm.\n</{tag}>\n\nHi [hostler] you"
    assert cleaned(content=content) == {"content": f"<{tag}>\nHm.\n</{tag}>\n\nHi [hostler] you"}
    parts = [{"type": "text", "text": content}, {"type": "image_url", "image_url": {"url": "u"}}]
    assert cleaned(content=parts)["content"][0]["text"].startswith(f"<{tag}>\nHm.")
    assert cleaned(content=parts)["content"][1] == parts[1]


def test_reasoning_that_was_nothing_else_disappears() -> None:
    assert without_progress_thoughts(f"<think>\n{SHOWN}</think>\n\nHi") == "Hi"
    assert without_progress_thoughts(f"<think>{SHOWN.rstrip()}</think>Hi") == "Hi"


def forwarded(adapter: Adapter, upstream: Upstream, path: str, **body: Any) -> Any:
    """What a backend receives of a body in its own protocol."""
    operation = next(each for each in adapter.operations if each.path == path)
    sent = json.dumps({"model": "m", **body}).encode()
    request = adapter.decode(operation, Incoming(method="POST", path=path, body=sent))
    assert isinstance(request, ChatRequest)
    return json.loads(upstream.build(request, model="m", stream=False).body)


def test_a_response_s_items_are_forwarded_without_it() -> None:
    asked = {"role": "user", "content": f"<think>{SHOWN}</think>?"}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": SHOWN + "Hm."}]}
    said = {"role": "assistant", "content": [{"type": "output_text", "text": f"<think>{SHOWN}</think>Hi"}]}
    called = {"type": "function_call", "call_id": "c", "name": "f", "arguments": json.dumps({"text": SHOWN})}
    items = [asked, thought, said, called]
    found = forwarded(OpenAIAdapter(), OpenAIUpstream(), "/v1/responses", input=items)["input"]
    assert found[0] == asked
    assert found[1]["summary"][0]["text"] == "Hm."
    assert found[2]["content"][0]["text"] == "Hi"
    assert found[3] == called


def test_anthropic_s_messages_are_forwarded_without_it() -> None:
    asked = {"role": "user", "content": f"<think>{SHOWN}</think>?"}
    said = {"role": "assistant", "content": [{"type": "text", "text": f"<think>{SHOWN}</think>Hi"}]}
    body = {"max_tokens": 9, "messages": [asked, said, {"role": "assistant", "content": f"<think>{SHOWN}</think>Ho"}]}
    found = forwarded(AnthropicAdapter(), AnthropicUpstream(), "/v1/messages", **body)["messages"]
    assert found[0] == asked
    assert found[1]["content"] == [{"type": "text", "text": "Hi"}]
    assert found[2]["content"] == "Ho"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": f"<think>\n{SHOWN}</think>what is this?"},
        {"role": "assistant", "content": SHOWN + "is in my log"},
        {"role": "assistant", "content": f"See <think>\n{SHOWN}</think>"},
        {"role": "assistant", "content": None, "reasoning": 3, "thinking": ["[hostler] "]},
        {"role": "tool", "content": SHOWN},
    ],
)
def test_what_others_have_written_stays(message: dict[str, Any]) -> None:
    body = json.dumps({"messages": [message]}).encode()
    assert without_progress(body) is body


@pytest.mark.parametrize(
    "body", [b'{"messages": "[hostler] "}', b'{"x": "[hostler] "}', b'{"a": 1, "a": "[hostler] "}']
)
def test_a_body_without_messages_stays(body: bytes) -> None:
    assert without_progress(body) is body
