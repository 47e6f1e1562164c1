"""Pieces of tool calls in every form that servers send give the same calls in every client's protocol."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.adapters.anthropic.adapter import AnthropicAdapter
from hostler.adapters.anthropic.upstream import AnthropicUpstream
from hostler.adapters.base import Adapter, Incoming
from hostler.adapters.canonical import ResponseHead, ToolCall
from hostler.adapters.errors import BackendBroken
from hostler.adapters.ollama.adapter import OllamaAdapter
from hostler.adapters.ollama.upstream import OllamaUpstream
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.openai.response_parser import OpenAIParser
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.adapters.tool_calls import MAX_CALLS, CallPiece, ToolCallReader, arguments_text

HELLO = [{"role": "user", "content": "Hello"}]
SSE = ResponseHead(media_type="text/event-stream")

Call = tuple[str, Any]


def read(*lists: list[CallPiece], whole: bool = False) -> list[tuple[str | None, str | None, str]]:
    """Id, name and arguments of each call."""
    reader, calls = ToolCallReader(), dict[int, list[Any]]()
    pieces: list[ToolCall] = []
    for each in lists:
        pieces += reader.read(each, whole=whole)
    for piece in (*pieces, *reader.finish()):
        if piece.index not in calls:
            assert piece.name is not None, "the first piece has the name"
            calls[piece.index] = [piece.id, piece.name, ""]
        else:
            assert (piece.id, piece.name) == (None, None)
        calls[piece.index][2] += piece.arguments
    assert list(calls) == list(range(len(calls)))
    return [tuple(call) for call in calls.values()]


def piece(index: Any = None, call_id: Any = None, name: Any = None, arguments: Any = None) -> CallPiece:
    return CallPiece(index, call_id, name, arguments)


A, B = ("a", "f", '{"x":1}'), ("b", "g", '{"y":2}')

FORMS: dict[str, list[list[CallPiece]]] = {
    "as OpenAI sends them": [
        [piece(0, "a", "f", "")], [piece(0, arguments='{"x":')], [piece(0, arguments="1}")],
        [piece(1, "b", "g", "")], [piece(1, arguments='{"y":2}')],
    ],
    "counted from 1": [[piece(1, "a", "f", '{"x":1}')], [piece(2, "b", "g", '{"y"')], [piece(2, arguments=":2}")]],
    "whole, without index": [[piece(None, "a", "f", '{"x":1}'), piece(None, "b", "g", '{"y":2}')]],
    "without index, in pieces": [
        [piece(None, "a", "f")], [piece(None, arguments='{"x":1}')],
        [piece(None, "b", "g")], [piece(None, arguments='{"y":2}')],
    ],
    "two ids at one index": [
        [piece(0, "a", "f", '{"x":')], [piece(0, arguments="1}")], [piece(0, "b", "g", '{"y":')],
        [piece(0, arguments="2}")],
    ],
    "two ids at one index, interleaved": [
        [piece(0, "a", "f"), piece(0, "b", "g")], [piece(0, "a", None, '{"x":'), piece(0, "b", None, '{"y":2')],
        [piece(0, "a", None, "1}")], [piece(0, "b", None, "}")],
    ],
    "interleaved by index": [
        [piece(0, "a", "f", '{"x"'), piece(1, "b", "g", '{"y":')], [piece(0, arguments=":1}")],
        [piece(1, arguments="2}")],
    ],
    "head and tail at different indexes": [
        [piece(0, "a", "f")], [piece(1, arguments='{"x":1}')], [piece(2, "b", "g")], [piece(3, arguments='{"y":2}')],
    ],
    "an id of its own for every piece": [
        [piece(0, "a", "f", "")], [piece(0, "a2", None, '{"x":1')], [piece(0, "a3", None, "}")],
        [piece(1, "b", "g", "")], [piece(1, "b2", "", '{"y":2}')],
    ],
    "id and name in every piece": [
        [piece(0, "a", "f", '{"x":')], [piece(0, "a", "f", "1}")], [piece(1, "b", "g", '{"y":2}')], [piece(1, "b", "g", "")],
    ],
    "the name in every piece, without ids later": [
        [piece(0, "a", "f", '{"x":')], [piece(0, None, "f", "1}")], [piece(1, "b", "g", '{"y":2}')],
    ],
    "objects": [[piece(0, "a", "f", {"x": 1}), piece(1, "b", "g", {"y": 2})]],
    "an empty object before the real ones": [
        [piece(0, "a", "f", {})], [piece(0, arguments='{"x":1}')], [piece(1, "b", "g", "{}")],
        [piece(1, arguments='{"y":2}')],
    ],
    "null before the real ones": [
        [piece(0, "a", "f", None)], [piece(0, None, None, '{"x":1}')], [piece(1, "b", "g", "null")],
        [piece(1, arguments='{"y":2}')],
    ],
    "the whole arguments once more": [
        [piece(0, "a", "f", '{"x":')], [piece(0, arguments="1}")], [piece(0, "a", "f", '{"x":1}')],
        [piece(1, "b", "g", '{"y":2}')], [piece(1, arguments={"y": 2})],
    ],
    "the name after the arguments": [
        [piece(0, "a", None, '{"x":')], [piece(0, None, "f", "1}")], [piece(1, "b", "", '{"y":2}')], [piece(1, None, "g")],
    ],
    "indexes as text": [[piece("0", "a", "f", '{"x":')], [piece("0", arguments="1}")], [piece("1", "b", "g", '{"y":2}')]],
    "absurd indexes": [[piece(10**400, "a", "f", '{"x":1}')], [piece([], "b", "g", '{"y":2}')]],
}  # fmt: skip


FORMS |= {
    "arguments encoded twice": [[piece(0, "a", "f", json.dumps('{"x":1}'))], [piece(1, "b", "g", json.dumps('{"y":2}'))]],
    "arguments encoded twice, in pieces": [
        [piece(0, "a", "f", "")], [piece(0, arguments='"{\\"x\\"')], [piece(0, arguments=':1}"')],
        [piece(1, "b", "g", '"{\\"y\\":')], [piece(1, arguments='2}"')],
    ],
}  # fmt: skip


def compact(arguments: str) -> str:
    return json.dumps(json.loads(arguments), separators=(",", ":"))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_calls(form: str) -> None:
    calls = [(call_id, name, compact(arguments)) for call_id, name, arguments in read(*FORMS[form])]
    assert calls == [A, B]


def test_calls_without_ids_are_told_apart() -> None:
    expected = [(None, "f", '{"x":1}'), (None, "f", '{"x":2}')]
    assert read([piece(0, None, "f", '{"x":1}')], [piece(0, None, "f", '{"x":2}')]) == expected
    assert read([piece(None, None, "f", '{"x":1}'), piece(None, None, "f", '{"x":2}')]) == expected
    assert read([piece(0, None, "f", '{"x":1}'), piece(0, None, "f", '{"x":2}')], whole=True) == expected


def test_calls_without_arguments_get_empty_ones() -> None:
    for arguments in (None, "", {}, "{}", "null"):
        for whole in (False, True):
            calls = read([piece(0, "a", "f", arguments), piece(1, "b", "f", arguments)], whole=whole)
            assert calls == [("a", "f", "{}"), ("b", "f", "{}")]


def test_a_call_whose_name_never_comes_is_kept() -> None:
    assert read([piece(0, "a", None, '{"x":1}')]) == [("a", "", '{"x":1}')]


def test_braces_within_strings_do_not_end_the_arguments() -> None:
    pieces = ['{"x":"}', "\\", '"}', '{\\\\"', "}", " "]
    assert read([piece(0, "a", "f", text) for text in pieces[:1]], *([piece(0, arguments=t)] for t in pieces[1:])) == [
        ("a", "f", '{"x":"}\\"}{\\\\"}')
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(None, ""), ("{", "{"), ({"a": 1}, '{"a":1}'), ([1], "[1]"), (msgspec.Raw(b'{"a": 1}'), '{"a": 1}'),
     (msgspec.Raw(b'"{}"'), "{}"), (msgspec.Raw(b"null"), ""), ({"a": 10**30}, '{"a":' + str(10**30) + "}")],
)  # fmt: skip
def test_arguments_of_any_form_become_text(arguments: Any, text: str) -> None:
    assert arguments_text(arguments) == text


# All encoders


def openai_calls(body: bytes, *, stream: bool) -> list[Call]:
    calls: dict[int, list[str]] = {}
    if not stream:
        message = json.loads(body)["choices"][0]["message"]
        return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]
    for event in events(body):
        for choice in event["choices"]:
            for call in choice["delta"].get("tool_calls") or []:
                known = calls.setdefault(call["index"], ["", ""])
                known[0] += call["function"].get("name") or ""
                known[1] += call["function"].get("arguments") or ""
    return [(name, json.loads(arguments)) for name, arguments in calls.values()]


def responses_calls(body: bytes, *, stream: bool) -> list[Call]:
    items = [] if stream else json.loads(body)["output"]
    for event in events(body) if stream else ():
        if event["type"] == "response.output_item.done":
            items.append((event["output_index"], event["item"]))
    items = [item for _, item in sorted(items, key=lambda each: each[0])] if stream else items
    return [(item["name"], json.loads(item["arguments"])) for item in items if item["type"] == "function_call"]


def anthropic_calls(body: bytes, *, stream: bool) -> list[Call]:
    if not stream:
        blocks = json.loads(body)["content"]
        return [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
    calls: list[list[str]] = []
    for event in events(body):
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
            calls.append([event["content_block"]["name"], ""])
        elif event["type"] == "content_block_delta":
            calls[-1][1] += event["delta"]["partial_json"]
    return [(name, json.loads(arguments or "{}")) for name, arguments in calls]


def ollama_calls(body: bytes, *, stream: bool) -> list[Call]:
    calls = [call for line in body.splitlines() for call in json.loads(line)["message"].get("tool_calls") or []]
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def events(body: bytes) -> Iterable[Any]:
    datas = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(data) for data in datas if data != b"[DONE]"]


ReadCalls = Callable[..., list[Call]]
ENCODERS: dict[str, tuple[Adapter, str, dict[str, Any], ReadCalls]] = {
    "openai": (OpenAIAdapter(), "/v1/chat/completions", {"messages": HELLO}, openai_calls),
    "responses": (OpenAIAdapter(), "/v1/responses", {"input": "Hello"}, responses_calls),
    "anthropic": (AnthropicAdapter(), "/v1/messages", {"messages": HELLO, "max_tokens": 9}, anthropic_calls),
    "ollama": (OllamaAdapter(), "/api/chat", {"messages": HELLO}, ollama_calls),
}


def delta(pieces: list[CallPiece]) -> bytes:
    calls = []
    for each in pieces:
        call: dict[str, Any] = {"type": "function", "function": {}}
        call |= {name: value for name, value in (("index", each.index), ("id", each.id)) if value is not None}
        call["function"] |= {} if each.name is None else {"name": each.name}
        call["function"] |= {} if each.arguments is None else {"arguments": each.arguments}
        calls.append(call)
    choice = {"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "1", "choices": [choice]}).encode() + b"\n\n"


END = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\ndata: [DONE]\n\n'


def calls_at_client(client: str, lists: list[list[CallPiece]], *, stream: bool, foreign: bool = True) -> list[Call]:
    """What a client reads when an OpenAI backend sends these pieces. `foreign`: as if of another protocol."""
    data, read_calls = answer_at_client(client, [*map(delta, lists), END], stream=stream, foreign=foreign)
    return read_calls(data, stream=stream)


def answer_at_client(client: str, blocks: list[bytes], *, stream: bool, foreign: bool) -> tuple[bytes, ReadCalls]:
    """What a client gets when an OpenAI backend sends these events, and how it reads the calls."""
    adapter, path, body, read_calls = ENCODERS[client]
    operation = next(each for each in adapter.operations if each.path == path)
    sent = json.dumps({"model": "m", "stream": stream, **body}).encode()
    request = adapter.decode(operation, Incoming(method="POST", path=path, body=sent))
    encoder = adapter.encoder(request, response_id="req-1", created=1, progress="off")
    parser = OpenAIParser("chat", fields=foreign)
    parser.start(SSE)
    encoder.start(SSE)
    data = bytearray()
    for block in blocks:
        for chunk in parser.feed(block):
            data += encoder.encode(msgspec.structs.replace(chunk, wire="", raw=b"") if foreign else chunk)
    for chunk in parser.finish():
        data += encoder.encode(msgspec.structs.replace(chunk, wire="", raw=b"") if foreign else chunk)
    return bytes(data + encoder.finish()), read_calls


SENDABLE = {name: lists for name, lists in FORMS.items() if name != "absurd indexes"}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("client", ENCODERS)
@pytest.mark.parametrize("form", SENDABLE)
def test_the_encoders_agree(client: str, form: str, stream: bool) -> None:
    assert calls_at_client(client, SENDABLE[form], stream=stream) == [("f", {"x": 1}), ("g", {"y": 2})]


@pytest.mark.parametrize("form", FORMS)
def test_folding_the_backends_own_stream_agrees_too(form: str) -> None:
    calls = calls_at_client("openai", FORMS[form], stream=False, foreign=False)
    assert calls == [("f", {"x": 1}), ("g", {"y": 2})]


@pytest.mark.parametrize("form", FORMS)
def test_a_forwarded_stream_agrees_too(form: str) -> None:
    calls = calls_at_client("openai", FORMS[form], stream=True, foreign=False)
    assert calls == [("f", {"x": 1}), ("g", {"y": 2})]


NAMES_IN_PIECES: dict[str, list[list[CallPiece]]] = {
    "the name in pieces": [
        [piece(0, "a", "get_")], [piece(0, name="wea", arguments="")], [piece(0, name="ther")], [piece(0, arguments='{"x":1}')],
        [piece(1, "b", "g", "")], [piece(1, name="et", arguments=None)], [piece(1, "b", "_time")], [piece(1, arguments='{"y":2}')],
    ],
    "all of the name so far": [
        [piece(0, "a", "get_")], [piece(0, "a", "get_weather")], [piece(0, "a", "get_weather", '{"x":1}')],
        [piece(1, "b", "get")], [piece(1, name="get_time")], [piece(1, arguments='{"y":2}')],
    ],
    "two calls that take nothing": [[piece(0, "a", "get_")], [piece(0, name="weather")], [piece(1, "b", "get_time")]],
    "its rest with the arguments": [
        [piece(0, "a", "get_")], [piece(0, name="weather", arguments='{"x":')], [piece(0, arguments="1}")],
        [piece(1, "b", "get_", "")], [piece(1, name="time", arguments='{"y":2}')],
    ],
    "without ids": [
        [piece(0, name="get_", arguments="")], [piece(0, name="weather", arguments="")], [piece(0, arguments='{"x":1}')],
        [piece(1, name="get_")], [piece(1, name="time")], [piece(1, arguments='{"y":2}')],
    ],
}  # fmt: skip


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("client", ENCODERS)
@pytest.mark.parametrize("form", NAMES_IN_PIECES)
def test_a_name_may_come_in_pieces(form: str, client: str, stream: bool) -> None:
    first, second = ({}, {}) if form == "two calls that take nothing" else ({"x": 1}, {"y": 2})
    calls = [("get_weather", first), ("get_time", second)]
    assert calls_at_client(client, NAMES_IN_PIECES[form], stream=stream) == calls
    if form != "all of the name so far":  # its first part may have been forwarded
        assert calls_at_client("openai", NAMES_IN_PIECES[form], stream=False, foreign=False) == calls


def test_another_name_at_the_same_place_is_another_call() -> None:
    assert read([piece(None, None, "f")], [piece(None, None, "g")]) == [(None, "f", "{}"), (None, "g", "{}")]
    assert read([piece(0, None, "f", "{}")], [piece(0, None, "g", "{}")]) == [(None, "f", "{}"), (None, "g", "{}")]


ODD_MESSAGES: dict[str, tuple[Any, str]] = {
    "calls as an object": ({"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x":1}'}}, "tool_calls"),
    "no function": ([{"index": 0, "id": "a", "name": "f", "arguments": '{"x":1}'}], "tool_calls"),
    "another reason": ([{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}], "tool_call"),
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("foreign", [True, False], ids=["translated", "forwarded"])
@pytest.mark.parametrize("client", ENCODERS)
@pytest.mark.parametrize("odd", ODD_MESSAGES)
def test_odd_calls_reach_every_client(odd: str, client: str, foreign: bool, stream: bool) -> None:
    if not foreign and client != "openai":
        return
    calls, finish = ODD_MESSAGES[odd]
    choice = {"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": finish}
    blocks = [b"data: " + json.dumps({"id": "1", "choices": [each]}).encode() + b"\n\n" for each in (choice, last)]
    data, read_calls = answer_at_client(client, [*blocks, b"data: [DONE]\n\n"], stream=stream, foreign=foreign)
    assert read_calls(data, stream=stream) == [("f", {"x": 1})]
    assert b'"tool_call"' not in data


names = st.sampled_from(["f", "g", "get_weather"])
values = st.dictionaries(st.sampled_from(["a", "b", '"', "}"]), st.integers() | st.text(max_size=5), max_size=3)


@st.composite
def sent_calls(draw: st.DrawFn) -> tuple[list[Call], list[list[CallPiece]]]:
    """Calls, and the pieces in which a server with some habits sends them."""
    calls = draw(st.lists(st.tuples(names, values), min_size=1, max_size=4))
    indexing = draw(st.sampled_from(["right", "from 1", "none", "zero", "other tails"]))
    ids_everywhere, names_everywhere = draw(st.booleans()), draw(st.booleans())
    streams: list[list[CallPiece]] = []
    for number, (name, arguments) in enumerate(calls):
        text = json.dumps(arguments)
        cuts = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=3))})
        parts: list[Any] = [""] + [text[start:end] for start, end in pairwise(cuts)]
        if draw(st.booleans()):
            parts = [arguments]
        pieces = []
        for at, part in enumerate(parts):
            tail = 2 * number + (at > 0)
            index = {"right": number, "from 1": number + 1, "zero": 0, "other tails": tail}.get(indexing)
            call_id = f"call_{number}" if at == 0 or ids_everywhere else None
            # Without an id in every piece, only a call's own index can tell that a name is repeated.
            repeats = names_everywhere and (ids_everywhere or indexing in ("right", "from 1"))
            pieces.append(piece(index, call_id, name if at == 0 or (repeats and part) else None, part))
        streams.append(pieces)
    if not ids_everywhere and indexing not in ("right", "from 1"):
        return calls, [[each] for pieces in streams for each in pieces]
    heads = [[pieces.pop(0)] for pieces in streams]
    order = draw(st.permutations([number for number, pieces in enumerate(streams) for _ in pieces]))
    return calls, heads + [[streams[number].pop(0)] for number in order]


@settings(max_examples=300)
@given(sent=sent_calls(), stream=st.booleans())
def test_a_servers_habits_change_nothing(sent: tuple[list[Call], list[list[CallPiece]]], stream: bool) -> None:
    calls, lists = sent
    for client in ENCODERS:
        assert calls_at_client(client, lists, stream=stream) == calls, client
    assert calls_at_client("openai", lists, stream=False, foreign=False) == calls


# The other direction: calls in a client's history

EARLIER: dict[str, Callable[[Any], dict[str, Any]]] = {
    "openai": lambda arguments: {"messages": [*HELLO, {"role": "assistant", "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]}]},
    "responses": lambda arguments: {"input": [
        {"role": "user", "content": "x"}, {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}]},
    "anthropic": lambda arguments: {"max_tokens": 9, "messages": [*HELLO, {"role": "assistant", "content": [
        {"type": "tool_use", "id": "c", "name": "f", "input": arguments}]}]},
    "ollama": lambda arguments: {"messages": [*HELLO, {"role": "assistant", "tool_calls": [
        {"id": "c", "function": {"name": "f", "arguments": arguments}}]}]},
}  # fmt: skip


@pytest.mark.parametrize("client", EARLIER)
@pytest.mark.parametrize(
    ("arguments", "meant"), [({"a": 1}, {"a": 1}), ('{"a": 1}', {"a": 1}), (None, {}), ({}, {}), ("", {})]
)
def test_earlier_calls_reach_every_backend_alike(client: str, arguments: Any, meant: dict[str, Any]) -> None:
    adapter, path, _, _ = ENCODERS[client]
    operation = next(each for each in adapter.operations if each.path == path)
    body = json.dumps({"model": "m", **EARLIER[client](arguments)}).encode()
    request = adapter.expand(adapter.decode(operation, Incoming(method="POST", path=path, body=body)))
    foreign = msgspec.structs.replace(request, origin=msgspec.structs.replace(request.origin, wire="other"))
    sent = [
        json.loads(upstream.build(foreign, model="there", stream=False).body)
        for upstream in (OpenAIUpstream(), AnthropicUpstream(), OllamaUpstream())
    ]
    openai, anthropic, ollama = (body["messages"][-1] for body in sent)
    assert json.loads(openai["tool_calls"][0]["function"]["arguments"]) == meant
    assert anthropic["content"][-1]["input"] == meant
    assert ollama["tool_calls"][0]["function"]["arguments"] == meant


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(("client", "foreign"), [*((client, True) for client in ENCODERS), ("openai", False)])
def test_an_answer_with_thousands_of_calls_is_broken(client: str, foreign: bool, stream: bool) -> None:
    most = [[piece(number, f"call_{number}", "f", "{}")] for number in range(MAX_CALLS)]
    assert len(calls_at_client(client, most, stream=stream, foreign=foreign)) == MAX_CALLS
    one_more = [*most, [piece(MAX_CALLS, "one more", "f", "{}")]]
    with pytest.raises(BackendBroken, match="more than 1024 tool calls"):
        calls_at_client(client, one_more, stream=stream, foreign=foreign)


def test_calls_of_thousands_of_alternatives_are_broken() -> None:
    def event(index: int) -> bytes:
        choice = {"index": index, "delta": {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]}}
        return b"data: " + json.dumps({"id": "1", "choices": [choice]}).encode() + b"\n\n"

    with pytest.raises(BackendBroken, match="alternatives"):
        answer_at_client("openai", [*map(event, range(5000)), END], stream=True, foreign=False)


BRACES = [piece(0, "a", "f", '{"x":"'), piece(1, "b", "g", '{"y":"')]
LONG: dict[str, Callable[[int], list[list[CallPiece]]]] = {
    "pieces of two calls by turns": lambda count: [
        BRACES,
        *([piece(number % 2, arguments="x" * 40 + "}")] for number in range(count)),
        [piece(0, arguments='"}'), piece(1, arguments='"}')],
    ],
    "encoded twice": lambda count: [
        [piece(0, "a", "f", '"{\\"x\\":\\"')], *([piece(0, arguments="y" * 40 + '\\"')] for _ in range(count))
    ],
}  # fmt: skip


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("client", ENCODERS)
@pytest.mark.parametrize("form", LONG)
def test_each_piece_of_long_arguments_is_looked_at_once(form: str, client: str, stream: bool) -> None:
    def seconds(count: int) -> float:
        pieces = LONG[form](count)
        began_at = time.process_time()
        answer_at_client(client, [*map(delta, pieces), END], stream=stream, foreign=True)
        return time.process_time() - began_at

    seconds(100)
    assert seconds(8000) < 24 * seconds(1000)
