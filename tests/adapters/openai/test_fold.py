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


UNKNOWN = ("x_text", "x_number", "x_list", "x_object", "x_flag")
unknown_values = st.dictionaries(
    st.sampled_from(UNKNOWN),
    st.text(max_size=3) | st.integers(-9, 9) | st.lists(st.integers(0, 9), max_size=2) | st.booleans()
    | st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 9), max_size=2),
    max_size=3,
)  # fmt: skip


@given(st.lists(st.tuples(unknown_values, unknown_values, unknown_values), min_size=1, max_size=5))
def test_unknown_fields_survive_everywhere_and_the_last_one_counts(fields: list[tuple[Any, Any, Any]]) -> None:
    fold, text = StreamFold(), 0
    top: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    message: dict[str, Any] = {}
    for number, (on_top, in_choice, in_delta) in enumerate(fields):
        delta = {"content": str(number), **in_delta}
        event = {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": None, **in_choice}], **on_top}
        fold.add_events(b"data: " + json.dumps(event).encode() + b"\n\n")
        top |= on_top
        choice |= in_choice
        message |= in_delta
        text += 1
    response = json.loads(fold.result())
    (folded,) = response["choices"]
    assert {name: response[name] for name in UNKNOWN if name in response} == top
    assert {name: folded[name] for name in UNKNOWN if name in folded} == choice
    assert {name: folded["message"][name] for name in UNKNOWN if name in folded["message"]} == message
    assert folded["message"]["content"] == "".join(map(str, range(text)))


def test_absurd_numbers_are_folded_as_they_came() -> None:
    fold = StreamFold()
    fold.add_events(b'data: {"choices":[{"index":"0","delta":{"content":"a"}}],"usage":{"prompt_tokens":%b}}\n\n'
                    % (b"1" + b"0" * 400))  # fmt: skip
    assert json.loads(fold.result())["usage"]["prompt_tokens"] == 10**400


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ([{"content": "Hi"}], {"role": "assistant", "content": "Hi"}),
        ([{"refusal": "No"}, {"refusal": "."}], {"role": "assistant", "content": None, "refusal": "No."}),
        ([{"role": "assistant"}], {"role": "assistant", "content": None}),
    ],
)
def test_a_message_has_what_a_stream_may_leave_out(deltas: list[dict[str, str]], message: dict[str, Any]) -> None:
    fold = StreamFold()
    for delta in deltas:
        fold.add({"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]})
    assert json.loads(fold.result())["choices"][0]["message"] == message
