"""Requests of paths that no protocol describes: as they are, but for the model's name; and their responses."""

from __future__ import annotations

import pytest

from hostler.adapters.base import Parser
from hostler.adapters.canonical import Origin, ResponseHead
from hostler.adapters.errors import BackendBroken
from hostler.adapters.openai.upstream import OpenAIUpstream
from hostler.adapters.passthrough import ForwardingParser, JsonForwardingParser, forwarded

FORM = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\xff\r\n--x--\r\n'


def origin(body: bytes = b"", query: str = "", content_type: str = "application/json") -> Origin:
    return Origin(
        wire="llamacpp", operation="other", body=body, path="/v1/score", query=query, content_type=content_type
    )


@pytest.mark.parametrize(
    ("body", "content_type", "sent"),
    [
        (b'{ "a": 1, "model": "m" }', "application/json", b'{ "a": 1, "model": "there" }'),
        (b'{"a": 1}', "application/json", b'{"a": 1}'),
        (b"[1, 2]", "application/json", b"[1, 2]"),
        (b"\x00\xff", "application/octet-stream", b"\x00\xff"),
        (FORM, "multipart/form-data; boundary=x", FORM.replace(b"\r\n\r\nm\r\n", b"\r\n\r\nthere\r\n")),
    ],
)
def test_only_the_models_name_is_replaced(body: bytes, content_type: str, sent: bytes) -> None:
    request = forwarded(origin(body, content_type=content_type), model="there", path="/v1/score")
    assert (request.body, request.content_type, request.path) == (sent, content_type, "/v1/score")


def test_the_model_in_the_query_is_replaced_as_well() -> None:
    assert forwarded(origin(query="a=1&model=m&b=2"), model="x/y", path="/p").path == "/p?a=1&model=x%2Fy&b=2"


def test_a_request_without_a_model_stays_as_it_is() -> None:
    request = forwarded(origin(b'{"model": null}', query="model="), model="", path="/p")
    assert (request.body, request.path) == (b'{"model": null}', "/p?model=")


@pytest.mark.parametrize(
    ("prefix", "path", "sent"),
    [
        ("/v1", "/v1/score", "/v1/score"),
        ("/v1", "/pooling", "/pooling"),
        ("", "/v1/score", "/score"),
        ("", "/v1", "/v1"),
        ("/v1", "/embeddings", "/v1/embeddings"),
        ("/v1beta/openai", "/embeddings", "/v1beta/openai/embeddings"),
        ("/v1", "/embedding", "/embedding"),
    ],
)
def test_the_prefix_of_the_backend_takes_the_place_of_v1(prefix: str, path: str, sent: str) -> None:
    assert OpenAIUpstream(prefix=prefix).forward_path(path) == sent


def test_a_body_and_a_stream_are_passed_on_as_they_come() -> None:
    parser = ForwardingParser("llamacpp")
    parser.start(ResponseHead(media_type="video/mp4"))
    assert [(chunk.raw, chunk.is_body, chunk.wire) for chunk in parser.feed(b"\x00\x01")] == [
        (b"\x00\x01", True, "llamacpp")
    ]
    assert list(parser.finish()) == []
    parser.start(ResponseHead(media_type="text/event-stream"))
    assert list(parser.feed(b"data: 1")) == []
    assert [chunk.raw for chunk in parser.feed(b"\n\ndata: 2")] == [b"data: 1\n\n"]
    assert [chunk.raw for chunk in parser.finish()] == [b"data: 2"]


WHOLE, STREAM = ResponseHead(), ResponseHead(media_type="text/event-stream")


def read(parser: Parser, head: ResponseHead, *pieces: bytes) -> bytes:
    parser.start(head)
    chunks = [chunk for piece in pieces for chunk in parser.feed(piece)]
    return b"".join(chunk.raw for chunk in [*chunks, *parser.finish()])


def test_json_with_its_member_is_passed_on_as_it_came() -> None:
    for body in (b'{"tokens": [1]}', b'[{"tokens": []}, {"tokens": [2]}]', b'{"tokens": [1%b]}' % (b", 1" * 200_000)):
        for at in (1, len(body) - 3):
            assert read(JsonForwardingParser("llamacpp", "tokens"), WHOLE, body[:at], body[at:]) == body
    events = b': ping\n\ndata: {"content": "a"}\n\ndata: {"stop": true}\n\ndata: [DONE]\n\n'
    assert read(JsonForwardingParser("llamacpp", "content"), STREAM, events[:30], events[30:]) == events
    assert read(JsonForwardingParser("llamacpp"), WHOLE, b'[{"id": 0}]') == b'[{"id": 0}]'


@pytest.mark.parametrize(
    ("head", "body"),
    [
        *((WHOLE, body) for body in (b"", b" ", b"<html>", b"null", b"{}", b"[]", b"3", b'{"a": 1}', b'{"tokens": [', b'[null]')),
        (WHOLE, b'{"error": "no"}'),
        (WHOLE, b'{"object": "error", "message": "no", "tokens": []}'),
        (WHOLE, b'{"tokens": [1%b' % (b", 1" * 200_000)),
        (ResponseHead(length=99), b'{"tokens": []}'),
        *((STREAM, body) for body in (b"", b": ping\n\n", b"<html>\n\n", b"data: [DONE]\n\n", b"data: {}\n\n", b'data: {"a": 1}\n\n')),
        (STREAM, b'data: {"error": {"message": "no"}}\n\n'),
        (STREAM, b'data: {"tokens": []}\n\ndata: {"error": {"message": "no"}}\n\n'),
        (STREAM, b'data: {"tokens": []}\n\ndata: {"tok'),
    ],
)  # fmt: skip
def test_what_is_no_json_or_lacks_its_member_is_broken(head: ResponseHead, body: bytes) -> None:
    with pytest.raises(BackendBroken):
        read(JsonForwardingParser("llamacpp", "tokens"), head, body)


def test_a_server_of_another_kind_answers_in_its_own_form() -> None:
    forms = (
        ("content", b'{"prompt": "Hi"}'),  # vLLM
        ("content", b'{"text": "Hi"}'),  # SGLang
        ("tokens", b'[[{"id": 1, "text": "Hi", "special": false}], [{"id": 2}]]'),  # text-embeddings-inference
    )
    for member, body in forms:
        assert read(JsonForwardingParser("llamacpp", member, foreign=True), WHOLE, body) == body
        with pytest.raises(BackendBroken):
            read(JsonForwardingParser("llamacpp", member), WHOLE, body)
    for garbage in (b"[[]]", b"[null]", b'[["a"], 3]', b'{"data": [null]}'):
        with pytest.raises(BackendBroken):
            read(JsonForwardingParser("llamacpp", "tokens", foreign=True), WHOLE, garbage)


def test_signs_of_life_before_the_first_event_commit_nothing() -> None:
    parser = JsonForwardingParser("llamacpp", "content")
    parser.start(STREAM)
    assert list(parser.feed(b": ping\n\n")) == []
    assert parser.take_signs() == b": ping\n\n"
    assert [chunk.raw for chunk in parser.feed(b'data: {"content": ""}\n\n')] == [b'data: {"content": ""}\n\n']
