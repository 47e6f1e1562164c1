"""Runs of events that differ in nothing but their text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters.openai.fold import StreamFold
from hostler.adapters.openai.text_run import TextRun


def event(text: str, field: str = "content", **more: object) -> bytes:
    choice = {"index": 0, "delta": {field: text}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "c", "choices": [choice], "model": "m", **more}).encode() + b"\n\n"


LAST = b'data: {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "model": "m"}\n\n'


def run(first: bytes = event("first")) -> TextRun:
    learned = TextRun()
    assert learned.learn(first)
    return learned


@given(st.lists(st.text(min_size=1), min_size=1), st.sampled_from([b"", LAST, LAST + b"data: [DONE]\n\n"]))
def test_all_texts_are_found_and_where_they_end(texts: list[str], rest: bytes) -> None:
    events = b"".join(map(event, texts))
    assert run().texts(b"x" + events + rest, 1) == (texts, 1 + len(events))


def test_the_field_of_the_text_is_known() -> None:
    assert run(event("", field="reasoning_content")).field == "reasoning_content"


@pytest.mark.parametrize(
    "others",
    [
        event("a", model="n") + event("b"),
        event("a") + LAST + event("b"),
        event("a") + b": still here\n\n" + event("b"),
        event("a") + event("b", usage={"prompt_tokens": 1}) + event("c"),
        event("a") + event("", field="content") + event("b"),
        event("a").replace(b'"a"', b"1"),
        event("a").replace(b'"a"', b'"a", "b"'),
        event("a").replace(b'"a"', b'"a') + event("b").replace(b'"b"', b'b"'),
        event("a").replace(b"\n\n", b"\r\n\r\n") + event("b"),
    ],
)
def test_other_events_are_no_run(others: bytes) -> None:
    learned = run()
    assert learned.texts(others) == ([], 0)
    assert learned.texts(event("a") if learned.learn(event("b")) else b"")[0] == ["a"]


@pytest.mark.parametrize(
    "first",
    [
        LAST,
        event("x" * 5000),
        event("a").replace(b"\n\n", b"\r\n\r\n"),
        event("a").replace(b'{"content": "a"}', b'{"content": "a"}, "delta": {"content": "b"}'),
        b"",
    ],
)
def test_an_event_without_one_text_teaches_nothing(first: bytes) -> None:
    learned = TextRun()
    assert not learned.learn(first)
    assert learned.texts(first) == ([], 0)


def test_what_differs_in_each_event_is_remembered_a_few_times_only() -> None:
    learned = TextRun()
    assert [learned.learn(event("a", obfuscation="x" * number)) for number in range(6)] == [True] * 4 + [False] * 2


def test_what_was_of_use_may_be_learned_again_and_again() -> None:
    learned = TextRun()
    for created in range(6):
        assert learned.learn(event("a", created=created))
        assert learned.texts(event("b", created=created) + event("c", created=created))[0] == ["b", "c"]


@given(st.lists(st.tuples(st.sampled_from(["content", "reasoning_content"]), st.text())), st.integers(1, 400))
def test_a_folded_stream_has_all_texts_wherever_it_was_cut(pieces: list[tuple[str, str]], size: int) -> None:
    events = [event("", field="content"), *(event(text, field=field) for field, text in pieces), LAST]
    blocks = [b"".join(events[at : at + 1 + size % 7]) for at in range(0, len(events), 1 + size % 7)]
    fold = StreamFold()
    for block in blocks:
        fold.add_events(block)
    message = json.loads(fold.result())["choices"][0]["message"]
    for field in ("content", "reasoning_content"):
        assert (message.get(field) or "") == "".join(text for name, text in pieces if name == field)
