"""What counts as a keep-alive, and what as a word of the answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from hostler.adapters.anthropic.response_parser import AnthropicParser
from hostler.adapters.base import Parser
from hostler.adapters.llamacpp.response_parser import LlamaCppParser
from hostler.adapters.openai.response_parser import OpenAIParser
from hostler.adapters.silence import says_nothing


def event(body: Any) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def chunk(**delta: Any) -> dict[str, Any]:
    return {"id": "1", "created": 5, "model": "m", "choices": [{"index": 0, "finish_reason": None, "delta": delta}]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"type": "ping"},
        {"type": "keepalive", "sequence_number": 7},
        {"choices": []},
        chunk(),
        chunk(role="assistant", content=None),
        chunk(content="", tool_calls=[], reasoning_content=""),
        {"type": "content_block_delta", "delta": {"text": ""}},
    ],
)
def test_envelopes_and_empty_fields_say_nothing(body: Any) -> None:
    assert says_nothing(json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [
        chunk(content=" "),
        chunk(images=[{"url": "x"}]),
        chunk(audio={"data": "AAAA"}),
        chunk(annotations=[{"n": 0}]),
        {"choices": [], "citations": ["x"]},
        {"choices": [{"index": 0, "logprobs": {"content": [{"token": "x"}]}}]},
        {"type": "content_block_delta", "delta": {"signature": "x"}},
        5,
        "x",
    ],
)
def test_whatever_else_an_event_has_is_content(body: Any) -> None:
    assert not says_nothing(json.dumps(body).encode())
    assert not says_nothing(b"{")


PARSERS: dict[str, Callable[[], Parser]] = {
    "chat": lambda: OpenAIParser("chat"),
    "fields": lambda: OpenAIParser("chat", fields=True),
    "completions": lambda: OpenAIParser("completions"),
    "responses": lambda: OpenAIParser("responses"),
    "anthropic": AnthropicParser,
    "llamacpp": lambda: LlamaCppParser(responses=1),
}
WORDS = {
    "chat": event(chunk(content="a")),
    "fields": event(chunk(content="a")),
    "completions": event({"choices": [{"index": 0, "text": "a"}]}),
    "responses": event({"type": "response.output_text.delta", "delta": "a"}),
    "anthropic": event({"type": "content_block_delta", "index": 0, "delta": {"text": "a"}}),
    "llamacpp": event({"content": "a", "stop": False, "tokens_predicted": 3}),
}
SILENCE = {
    "completions": event({"choices": [{"index": 0, "text": ""}]}),
    "responses": event({"type": "response.in_progress", "response": {"id": "x", "status": "in_progress"}}),
    "anthropic": event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": ""}}),
    "llamacpp": event({"content": "", "stop": False, "tokens_predicted": 3}),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_parser_says_whether_it_was_fed_a_word(name: str) -> None:
    parser, word = PARSERS[name](), WORDS[name]
    silence = SILENCE.get(name, event(chunk(content="")))
    for _ in range(2):
        assert list(parser.feed(word))
        assert not parser.is_silent
        for _ in range(20):
            list(parser.feed(silence))
            assert parser.is_silent
        list(parser.feed(silence + word.replace(b"3}", b"4}") if name == "llamacpp" else silence + word))
        assert not parser.is_silent


@pytest.mark.parametrize("name", ["chat", "fields", "completions", "llamacpp"])
def test_silence_before_the_first_word_begins_no_answer(name: str) -> None:
    """However long it is: another backend may still answer, and a bounded part of it is kept."""
    parser, word, silence = PARSERS[name](), WORDS[name], SILENCE.get(name, event(chunk(content="")))
    if name == "llamacpp":
        silence = event({"content": "", "stop": False})
    for _ in range(100):
        assert list(parser.feed(silence)) == []
    assert b"".join(each.raw for each in parser.feed(word)) == 16 * silence + word
