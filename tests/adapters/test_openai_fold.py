"""Folding a stream into the whole answer: the short way through events that are alike gives what the long one gives."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters.openai.fold import AnswerFold

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
def test_the_short_way_and_the_long_way_meet(events: list[dict[str, Any]], compact: bool, ascii_only: bool) -> None:
    separators = (",", ":") if compact else (", ", ": ")
    by_bytes, by_values = AnswerFold(), AnswerFold()
    for event in events:
        text = json.dumps(event, separators=separators, ensure_ascii=ascii_only)
        by_bytes.add_events(f"data: {text}\n\n".encode())
        by_values.add(msgspec.json.decode(text))
    assert by_bytes.result() == by_values.result()


def test_a_piece_that_is_no_text_is_read_the_long_way() -> None:
    fold = AnswerFold()
    for content in ('"a"', '"b"', "null", '"c"', '"d"'):
        fold.add_events(b'data: {"choices":[{"index":0,"delta":{"content":%b}}]}\n\n' % content.encode())
    assert msgspec.json.decode(fold.result())["choices"][0]["message"]["content"] == "abcd"
