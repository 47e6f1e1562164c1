"""Tool calls are forwarded as they came while they are well-formed, and put in order from the first odd piece on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.openai.call_events import CallEvents, has_calls, whole_calls


def piece(index: Any, call_id: Any = None, name: Any = None, arguments: Any = None) -> dict[str, Any]:
    fields = {"index": index, "id": call_id, "type": None if call_id is None else "function"}
    function = {"name": name, "arguments": arguments}
    call = {name: value for name, value in fields.items() if value is not None}
    return call | {"function": {name: value for name, value in function.items() if value is not None}}


def event(*calls: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    delta = {"tool_calls": calls} if calls else {}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "chatcmpl-7", "choices": [choice], **more}).encode() + b"\n\n"


def forwarded(*events: bytes) -> list[bytes]:
    calls = CallEvents()
    return [calls.forward(each, each[6:-2]) for each in events]


def pieces_in(data: bytes) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = json.loads(data[6:])["choices"][0]["delta"].get("tool_calls", [])
    return calls


END = event(finish="tool_calls")


@pytest.mark.parametrize(
    "events",
    [
        [event(piece(0, "a", "f", "")), event(piece(0, arguments='{"x":')), event(piece(0, arguments="1}"))],
        [event(piece(0, "a", "f", "{}"))],
        [event(piece(0, "a", "f", "{}"), piece(1, "b", "g", "")), event(piece(1, "b", None, "{}"))],
        [
            event(piece(0, "a", "f", ""), piece(1, "b", "g", "")),
            event(piece(1, arguments="{}"), piece(0, arguments="{}")),
        ],
        [event(piece(0, "a", "f", '{"x":')), event(piece(0, arguments='"y"}'))],
        [event(piece(0, "a", "get_")), event(piece(0, name="weather")), event(piece(0, arguments="{}"))],
    ],
)
def test_well_formed_pieces_stay_as_they_came(events: list[bytes]) -> None:
    assert b"".join(forwarded(*events, END)) == b"".join([*events, END])


def arguments_of(*events: bytes) -> list[str]:
    """The arguments of each call, as a client puts them together."""
    found: dict[int, str] = {}
    for each in b"".join(forwarded(*events)).split(b"\n\n")[:-1]:
        for call in pieces_in(each):
            found[call["index"]] = found.get(call["index"], "") + (call["function"].get("arguments") or "")
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("arguments", [None, "", " "])
def test_a_call_that_never_gets_arguments_has_none(arguments: str | None) -> None:
    calls = event(piece(0, "a", "f", arguments), piece(1, "b", "g", '{"x":1}'))
    assert [json.loads(each) for each in arguments_of(calls, END)] == [{}, {"x": 1}]
    last = event(piece(0, "a", "f", arguments), finish="tool_calls")
    assert [json.loads(each) for each in arguments_of(last)] == [{}]


@pytest.mark.parametrize(
    "rest",
    [
        [piece(0, arguments='{"x"'), piece(0, arguments=":1}")],
        [piece(0, "a", "f", '{"x":1}')],
        [piece(None, arguments={"x": 1})],
        [piece(None, "a", None, '{"x":1}')],
    ],
)
def test_empty_arguments_before_the_real_ones_are_a_placeholder(rest: list[dict[str, Any]]) -> None:
    events = [event(piece(0, "a", "f", "{}")), *map(event, rest), END]
    assert [json.loads(each) for each in arguments_of(*events)] == [{"x": 1}]


def test_an_event_with_empty_arguments_is_held_back_until_the_next_one() -> None:
    empty, text = event(piece(0, "a", "f", "{}")), event()
    assert forwarded(empty, text, END) == [b"", empty + text, END]
    assert forwarded(event(piece(0, "a", "f", "{}"), finish="tool_calls")) == [
        event(piece(0, "a", "f", "{}"), finish="tool_calls")
    ]


@pytest.mark.parametrize(
    "odd",
    [
        piece(None, "b", "g", "{}"),
        piece(0, "b", "g", "{}"),
        piece(2, "b", "g", "{}"),
        piece("1", "b", "g", "{}"),
        piece(1, None, "g", "{}"),
        piece(1, "b", "g", {}),
        piece(1, "b", "g", '"{}"'),
        piece(1, "b", "g", "null"),
        {"index": 1, "id": "b", "name": "g", "arguments": "{}"},
    ],
)
def test_calls_are_put_in_order_from_the_first_odd_piece_on(odd: dict[str, Any]) -> None:
    first = event(piece(0, "a", "f", '{"x":1}'))
    same, changed, last = forwarded(first, event(odd), END)
    assert same == first
    (head,) = pieces_in(changed)
    assert (head["index"], head["type"], head["function"]["name"]) == (1, "function", "g")
    assert head["id"] == ("b" if "id" in odd else "call_7_1")
    texts = [call["function"]["arguments"] for call in (head, *pieces_in(last))]
    assert "".join(texts) == "{}"
    assert all(call["index"] == 1 for call in pieces_in(last))


def test_everything_else_in_a_changed_event_stays() -> None:
    (changed,) = forwarded(event(piece(0, "a", "f", {"x": 1}), number=1e-7, big=10**30, __verbose={"a": 1}))
    body = json.loads(changed[6:])
    assert (body["id"], body["number"], body["big"], body["__verbose"]) == ("chatcmpl-7", 1e-7, 10**30, {"a": 1})
    assert pieces_in(changed)[0]["function"] == {"name": "f", "arguments": '{"x":1}'}


def test_the_finish_reason_of_odd_calls_is_the_usual_one() -> None:
    for arguments in ({}, '{"x":1}'):
        _, last = forwarded(event(piece(0, "a", "f", arguments)), event(finish="tool_call"))
        assert json.loads(last[6:])["choices"][0]["finish_reason"] == "tool_calls"


def test_other_fields_of_odd_calls_stay() -> None:
    signed = piece(None, "a", "f", "{}") | {"extra_content": {"google": {"thought_signature": "x"}}}
    (changed,) = forwarded(event(signed))
    assert pieces_in(changed)[0]["extra_content"] == signed["extra_content"]
    (whole,) = whole_calls(signed, "chatcmpl-7")
    assert whole == {**signed, "index": 0}


@pytest.mark.parametrize(
    "form", [piece(None, "a", "f", {"x": 1}), [piece(3, "a", "f", '{"x":1}')], [piece(None, None, "f", {"x": 1})]]
)
def test_whole_calls_become_pieces(form: Any) -> None:
    (call,) = whole_calls(form, "chatcmpl-7")
    assert (call["index"], call["type"], call["function"]) == (0, "function", {"name": "f", "arguments": '{"x":1}'})
    assert call["id"] in ("a", "call_7_0")


@pytest.mark.parametrize(
    "data", [b"data: null\n\n", b'data: {"choices":3}\n\n', b'data: {"choices":[1]}\n\n', b"data: {\n\n"]
)
def test_events_of_another_shape_stay_as_they_came(data: bytes) -> None:
    assert forwarded(data) == [data]


@pytest.mark.parametrize(
    ("calls", "has"), [(b"[]", False), (b" null", False), (b" [ ]", False), (b"[{}]", True), (b"{}", True)]
)
def test_empty_lists_of_calls_are_none(calls: bytes, has: bool) -> None:
    assert has_calls(b'data: {"choices":[{"delta":{"tool_calls":%b}}]}' % calls) is has
    assert not has_calls(b'data: {"choices":[{"delta":{"content":"\\"tool_calls\\":[{}]"}}]}')
