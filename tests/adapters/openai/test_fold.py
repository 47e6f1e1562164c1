"""Folding a stream: the fast path through similar events gives the same as the slow one."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters.errors import BackendBroken
from hostler.adapters.openai.fold import StreamFold

TEXTS = st.text(max_size=6) | st.sampled_from(['"delta":{"content":"', '}}],"x":{"', "\\", '"', "\u2028", "é\n"])
DELTAS = st.one_of(
    st.builds(lambda text: {"content": text}, TEXTS),
    st.builds(lambda text: {"content": text}, TEXTS),
    st.builds(lambda text: {"reasoning_content": text}, TEXTS),
    st.builds(lambda text: {"role": "assistant", "content": text}, TEXTS | st.none()),
    st.builds(lambda text: {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}, TEXTS),
    st.just({}),
)
CHOICES = st.builds(
    lambda index, delta, more: {"index": index, "delta": delta, **more},
    st.sampled_from([0, 0, 0, 0, 1]),
    DELTAS,
    st.sampled_from(
        [{}, {}, {"finish_reason": None}, {"finish_reason": "stop"}, {"logprobs": {"content": [{"token": "a"}]}}]
    ),
)
EVENTS = st.lists(
    st.builds(
        lambda choices, more: {"id": "1", "object": "chat.completion.chunk", "choices": choices, **more},
        st.lists(CHOICES, min_size=1, max_size=2),
        st.sampled_from([{}, {}, {"usage": {"prompt_tokens": 3}}, {"timings": {"a": 1}}, {"note": "x"}]),
    ),
    max_size=8,
)


@given(events=EVENTS, compact=st.booleans(), ascii_only=st.booleans())
def test_the_fast_path_folds_like_the_slow_one(events: list[dict[str, Any]], compact: bool, ascii_only: bool) -> None:
    separators = (",", ":") if compact else (", ", ": ")
    by_bytes, by_values = StreamFold(), StreamFold()
    for event in events:
        text = json.dumps(event, separators=separators, ensure_ascii=ascii_only)
        by_bytes.add_events(f"data: {text}\n\n".encode())
        by_values.add(msgspec.json.decode(text))
    assert by_bytes.result() == by_values.result()


def test_a_piece_that_is_no_text_takes_the_slow_path() -> None:
    fold = StreamFold()
    for content in ('"a"', '"b"', "null", '"c"', '"d"'):
        fold.add_events(b'data: {"choices":[{"index":0,"delta":{"content":%b}}]}\n\n' % content.encode())
    assert msgspec.json.decode(fold.result())["choices"][0]["message"]["content"] == "abcd"


@pytest.mark.parametrize(
    "event",
    [
        b'{"choices":["x"]}',
        b'{"choices":"x"}',
        b'{"choices":[{"delta":"hi"}]}',
        b'{"choices":[{"index":"a","delta":{}}]}',
        b'{"choices":[{"message":"hi"},{"delta":{"content":"a"}}]}',
        b'{"choices":[{"delta":{"tool_calls":"x"}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"index":[]}]}}]}',
        b'{"choices":[{"delta":{"content":"\xff"}}]}',
    ],
)
def test_invalid_events_are_broken(event: bytes) -> None:
    with pytest.raises(BackendBroken):
        StreamFold().add_events(b"data: " + event + b"\n\n")


NAMES = st.sampled_from(
    ["choices", "delta", "message", "index", "tool_calls", "object", "logprobs", "text", "usage", "content", "function"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from(["", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


@given(
    st.lists(
        st.dictionaries(NAMES, ANYTHING, max_size=3)
        | st.builds(lambda choice: {"choices": [choice]}, st.dictionaries(NAMES, ANYTHING, max_size=3)),
        max_size=4,
    )
)
def test_whatever_a_backend_sends_is_folded_or_broken(events: list[Any]) -> None:
    fold = StreamFold()
    try:
        for event in events:
            fold.add_events(b"data: " + msgspec.json.encode(event) + b"\n\n")
        if events:
            fold.result()
    except BackendBroken:
        pass
