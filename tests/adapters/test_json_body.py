"""Bodies are read and patched without losing a byte, and hostile ones are rejected fast."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters import json_body
from hostler.adapters.errors import BadRequest
from hostler.adapters.json_body import JsonBody

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(["model", "stream", "messages", 'mo"del', "\\", "model ", "é", ""]) | st.text(max_size=6)
objects = st.dictionaries(keys, values, max_size=6)
layouts = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 0, 2]),
        "separators": st.sampled_from([(",", ":"), (" ,\t", " : ")]),
    }
)


def encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@given(objects.filter(encodable), layouts, st.sampled_from(["", " ", "\n\t"]))
def test_patch_changes_the_named_members_and_no_other_byte(
    body: dict[str, Any], layout: dict[str, Any], space: str
) -> None:
    text = (space + json.dumps(body, **layout) + space).encode()
    patched = json_body.patch(text, {"model": b'"new"', "stream": b"true"})
    assert json.loads(patched) == {**body, "model": "new", "stream": True}
    where = json_body.spans(text, json_body.members(text))
    rest = [
        text[end:start]
        for (_, end), (start, _) in zip([(0, 0), *where.values()], [*where.values(), (len(text), 0)], strict=True)
    ]
    at = 0
    for piece in rest:
        # The bytes between the values stay in order. New members come right after the brace.
        for part in (piece[: piece.index(b"{") + 1], piece[piece.index(b"{") + 1 :]) if at == 0 else (piece,):
            at = patched.index(part, at) + len(part)


@given(objects.filter(encodable))
def test_patch_with_the_same_values_gives_the_same_bytes(body: dict[str, Any]) -> None:
    text = json.dumps(body).encode()
    same = {name: json.dumps(value).encode() for name, value in body.items()}
    assert json_body.patch(text, same) == text


def test_a_nested_model_is_left_alone() -> None:
    body = b'{"metadata":{"model":"x"},"messages":[{"model":"y","content":"\\"model\\":\\"z\\""}],"model":"a"}'
    assert json_body.patch(body, {"model": b'"b"'}) == body[:-3] + b'b"}'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is empty"),
        (b"  ", "is empty"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"{", "not valid JSON"),
        (b'{"a":1}x', "not valid JSON"),
        (b'{"a":NaN}', "not valid JSON"),
        (b'{"a":"\\ud800"}', r"not valid JSON: a lone surrogate \(byte 6\)"),
        (b'{"a":"\\\\\\uDC00x"}', r"a lone surrogate \(byte 8\)"),
        (b'{"a":"\\ud83d\\ude00","b":["\\ud83d"]}', r"a lone surrogate \(byte 26\)"),
        (b'{"a":"\\ud83d\\ud83d\\ude00"}', r"a lone surrogate \(byte 6\)"),
        (b'{"a":"\xed\xa0\x80"}', r"a lone surrogate \(byte 6\)"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"model":"a","model":"b"}', '"model" more than once'),
        (b'{"model":"a","model":"a"}', "more than once"),
        (b'{"model":"aa","x":1,"m\\u006fdel":"b"}', '"model" more than once'),
        (b'{"a":12,"a":1}', '"a" more than once'),
    ],
)
def test_ambiguous_json_is_rejected(body: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        JsonBody(body)


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize("wide", ["", "{}", '"[[{{",' * 200 + "[]", "[]," * 400 + "{}"])
def test_depth_is_limited_exactly(wide: str) -> None:
    def body(depth: int) -> bytes:
        inner = '{"b":' * (depth - 2) + "[" + wide + "]" + "}" * (depth - 2)
        return b'{"x":[' + wide.encode() + b'],"a":' + inner.encode() + b"}"

    most = json_body.MAX_DEPTH - ("[]" in wide or "{}" in wide)
    assert JsonBody(body(most)).members
    assert JsonBody(nested(json_body.MAX_DEPTH)).members
    for deep in (body(most + 1), nested(json_body.MAX_DEPTH + 1)):
        with pytest.raises(BadRequest, match="nested"):
            JsonBody(deep)


def test_brackets_in_strings_are_not_depth() -> None:
    assert JsonBody(json.dumps({"content": '["\\' * 5000}).encode()).members


@pytest.mark.parametrize(
    "body",
    [
        nested(100_000),
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        json.dumps({f"k{number}": number for number in range(10**6)}).encode(),
        b'{"model":"a",' + b",".join([b'"model":"b"'] * 90_000) + b"}",
    ],
    ids=["arrays", "only arrays", "objects", "keys", "duplicates"],
)
def test_hostile_bodies_cost_little_more_than_others_of_their_size(body: bytes) -> None:
    harmless = json.dumps({"content": "x" * len(body)}).encode()
    hostile_s, harmless_s = [], []
    for _ in range(5):
        began = time.thread_time()
        assert JsonBody(harmless).members
        between = time.thread_time()
        with pytest.raises(BadRequest):
            JsonBody(body)
        hostile_s.append(time.thread_time() - between)
        harmless_s.append(between - began)
    assert min(hostile_s) < 10 * min(harmless_s)


def test_a_wrong_type_names_the_field() -> None:
    with pytest.raises(BadRequest, match="`model` must be a string") as caught:
        JsonBody(b'{"model":1}').text("model")
    assert caught.value.param == "model"


def test_null_is_absent() -> None:
    body = JsonBody(b'{"model":null}')
    assert body.text("model") is None
    assert not body.has("model")


MANY = 8 * 1024 * 1024


def test_too_many_values_are_rejected_but_not_for_commas_in_texts() -> None:
    with pytest.raises(BadRequest, match="more than 2000000 values"):
        JsonBody(b'{"input":[' + b"1," * 2_100_000 + b"1]}")
    for text in (b"," * 3_000_000, b'\\",' * 2_100_000, b"\\\\," * 2_100_000):
        assert JsonBody(b'{"input":["' + text + b'"]}').has("input")


@pytest.mark.parametrize(
    "value",
    [
        b"[" + b"[]," * (MANY // 3) + b"1]",
        b'{"a":[' + b"[]," * (MANY // 3) + b"1]}",
        b"[" + b'["["],' * (MANY // 6) + b"1]",
        b"[" + b"{}," * (MANY // 3) + b"1]",
    ],
)
def test_too_many_lists_are_rejected_at_once(value: bytes) -> None:
    body = b'{"model":"x","messages":' + value + b"}"
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(BadRequest, match="more than 100000 lists"):
        JsonBody(body)
    taken, most = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 1
    assert most < 64 * 1024 * 1024


@pytest.mark.parametrize("text", [b"[", b"[]{}", b'\\"[', b"\\\\", b'\\\\\\"{', b'","'])
def test_brackets_in_strings_are_no_lists(text: bytes) -> None:
    message = b'["' + text * (MANY // 8 // len(text)) + b'"],'
    assert JsonBody(b'{"a":' + b"[" + message * 3 + b"[" * 126 + b"]" * 126 + b"]}").has("a")
    with pytest.raises(BadRequest, match="deep"):
        JsonBody(b'{"a":' + b"[" + message * 3 + b"[" * 127 + b"]" * 127 + b"]}")
