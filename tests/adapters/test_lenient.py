"""Values of odd types are converted or left out; what fits is decoded as msgspec does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters import lenient
from hostler.adapters.json_body import NOT_JSON
from hostler.adapters.lenient import Count


class Part(msgspec.Struct, frozen=True, kw_only=True):
    text: str | None = None
    score: float = 0.5


class Event(msgspec.Struct, frozen=True, kw_only=True):
    tokens: Count = 0
    limit: Count | None = None
    name: str = ""
    done: bool = False
    parts: list[Part] | None = None
    raw: msgspec.Raw = msgspec.Raw(b"")
    other: Any = None
    mixed: str | list[Part] | None = None


decode = lenient.decoder(Event)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"tokens": 3, "name": "a"}', Event(tokens=3, name="a")),
        ('{"tokens": "3"}', Event(tokens=3)),
        ('{"tokens": "3.0", "limit": 4.0}', Event(tokens=3, limit=4)),
        ('{"tokens": 1e400, "name": "a"}', Event(name="a")),
        (f'{{"tokens": 1{"0" * 400}, "name": "a"}}', Event(name="a")),
        ('{"tokens": "many", "limit": true, "name": "a"}', Event(name="a")),
        ('{"tokens": null, "name": null, "done": "true"}', Event(done=True)),
        ('{"name": 7, "tokens": 2}', Event(name="7", tokens=2)),
        ('{"parts": [{"text": "a"}, 3, {"text": 5, "score": "0.25"}]}', Event(parts=[Part(text="a"), Part(text="5", score=0.25)])),
        ('{"parts": "none", "tokens": 2}', Event(tokens=2)),
        ('{"parts": [{"score": 1e999}]}', Event(parts=[Part()])),
        ('{"mixed": [{"text": 1}], "tokens": "1"}', Event(tokens=1, mixed=[Part(text="1")])),
        ('{"mixed": "a", "tokens": "1"}', Event(tokens=1, mixed="a")),
        ('{"other": [1, {"a": 2}], "tokens": "1"}', Event(tokens=1, other=[1, {"a": 2}])),
    ],
)  # fmt: skip
def test_odd_values_are_converted_or_left_out(text: str, expected: Event) -> None:
    assert decode(text.encode()) == expected


def test_raw_values_are_kept() -> None:
    assert bytes(decode(b'{"raw": {"a": [1]}, "tokens": "1"}').raw) == b'{"a":[1]}'


class Vector(msgspec.Struct, frozen=True, kw_only=True):
    numbers: lenient.Numbers | None = None
    all: lenient.Vectors | None = None
    name: str = ""


def test_of_numbers_that_belong_together_none_is_left_out() -> None:
    read = lenient.decoder(Vector)
    assert read(b'{"numbers": [1, "2.5"], "name": 3}') == Vector(numbers=[1.0, 2.5], name="3")
    assert read(b'{"numbers": [1, null]}') == Vector()
    assert read(b'{"all": [[1], ["2"]]}') == Vector(all=[[1.0], [2.0]])
    assert read(b'{"all": [[1], [null]]}') == Vector()
    assert read(b'{"all": [[1], null]}') == Vector()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"3", b'"a"', b"\xff"])
def test_what_is_no_object_is_an_error(text: bytes) -> None:
    with pytest.raises(NOT_JSON):
        decode(text)


@pytest.mark.parametrize("text", [b"[", b"[DONE]", b"nul", b'{"tokens": "x"', b'{"tokens": [}', b'{"tokens": "1"} x'])
def test_what_is_no_json_is_not_taken_for_another_shape(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError) as caught:
        decode(text)
    assert not isinstance(caught.value, msgspec.ValidationError)


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3), ("3", 3), (3.0, 3), ("3.9", 3), (None, None), ("x", None), (True, None), (float("inf"), None), ("inf", None),
     (10**400, None), ("9" * 99, None), ([], None), (-1, -1), (msgspec.Raw(b"1.0"), 1)],
)  # fmt: skip
def test_counts_are_read_in_any_form(value: object, number: int | None) -> None:
    assert lenient.count(value) == number


def test_large_whole_numbers_keep_their_digits() -> None:
    value = {"a": [10**30, {"b": -(10**30)}], "c": 2**64 - 1}
    assert json.loads(lenient.encode(value)) == value


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "score", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["tokens", "limit", "name", "done", "parts", "raw", "other", "mixed"]), anything)
)
def test_any_object_is_decoded(value: dict[str, Any]) -> None:
    event = decode(json.dumps(value).encode())
    assert isinstance(event.tokens, int)
    assert isinstance(event.name, str)
    assert isinstance(event.done, bool)
    msgspec.json.encode(msgspec.structs.replace(event, other=None))


def test_half_a_character_is_no_json_beside_a_number_beyond_all_ranges() -> None:
    number = "1" * 5000
    assert lenient.decode_any(f'{{"number": {number}, "text": "a"}}')["text"] == "a"
    with pytest.raises(NOT_JSON):
        lenient.decode_any(f'{{"number": {number}, "text": "\\ud800"}}')


@pytest.mark.parametrize("read", [decode, lenient.decode_any, lenient.decode_exactly])
def test_millions_of_lists_are_not_decoded(read: Callable[[bytes], Any]) -> None:
    def nested(count: int) -> bytes:
        return b'{"other": [' + b",".join([b"[]"] * (count - 2)) + b"]}"

    read(nested(lenient.MAX_CONTAINERS))
    with pytest.raises(msgspec.DecodeError, match="more than 1000000 lists and objects"):
        read(nested(lenient.MAX_CONTAINERS + 1))


def test_numbers_and_texts_are_not_counted() -> None:
    assert len(lenient.decode_any(b"[" + b"1," * 1_500_000 + b"1]")) == 1_500_001
    assert len(lenient.decode_any('"' + "x" * 2_000_000 + '"')) == 2_000_000
