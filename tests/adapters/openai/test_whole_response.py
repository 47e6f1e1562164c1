"""A whole response is one only if it has what its operation returns."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest

from hostler.adapters.canonical import EmbedRequest, Origin, ResponseHead
from hostler.adapters.errors import BackendBroken
from hostler.adapters.openai import whole_response
from hostler.adapters.openai.response_parser import OpenAIParser
from hostler.adapters.openai.upstream import OpenAIUpstream

JSON = "application/json"
CHAT = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}
GOOD: list[tuple[str, Any]] = [
    ("chat", CHAT),
    ("chat", {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}),
    ("chat", {"choices": [{"message": {"content": "Hi"}, "finish_reason": None}]}),
    ("chat", {"choices": [{"message": {"content": None, "tool_calls": [{"function": {"name": "now"}}]}}]}),
    ("completions", {"choices": [{"text": "Hi"}]}),
    ("embeddings", {"data": [{"index": 0, "embedding": "AAAAPw=="}]}),
    ("completions", {"choices": [{"text": "", "finish_reason": "length"}]}),
    ("embeddings", {"data": [{"index": 0, "embedding": [0.5]}]}),
    ("embeddings", {"data": [{"index": 0, "embedding": [[0.5, 1], [-1, 0]]}]}),
    ("embeddings", {"data": [{"object": "embeddings", "index": 0, "embeddings": [[0.5, 1], [-1, 0]]}]}),
    ("rerank", {"results": [{"index": "0", "relevance_score": -3}]}),
    ("rerank", {"data": [{"index": 0, "relevance_score": 0.5}]}),
    ("rerank", [{"index": 0, "score": 0.5}]),
    ("rerank", {"results": [{"relevance_score": 0.5, "document": {"text": "x"}}]}),
    ("rerank", [{"score": 0, "text": "x"}]),
    ("images", {"created": 1, "data": [{"url": "x"}]}),
    ("images", {"images": ["aGk="], "parameters": {}, "info": "{}"}),
    ("moderations", {"results": [{"flagged": False}]}),
    ("responses", {"output": [], "status": "completed"}),
    ("responses", {"status": "in_progress", "background": True}),
    ("count", {"input_tokens": 3}),
    ("chat", {**CHAT, "error": None, "usage": {"prompt_tokens": "3", "completion_tokens": 10**400}}),
    ("chat", {**CHAT, "error": {}}),
]
BAD: list[tuple[str, bytes]] = [
    *((operation, body) for operation in sorted(whole_response.JSON_OPERATIONS)
      for body in (b"", b"  ", b"{}", b"null", b"<html>", b'{"choices":[', b'{"choices":[]}', b'{"data":[ ]}', b"3")),
    ("chat", b'{"choices":[{"finish_reason":"stop"}]}'),
    ("chat", b'{"choices":[{"message":{"content":"Hi"}},{}]}'),
    ("chat", b'[{"index": 0}]'),
    ("embeddings", b'{"data":"x"}'),
    ("embeddings", b'{"data":[{"index":0,"embedding":[0.5]},{"index":1,"embedding": null}]}'),
    ("embeddings", b'{"data":[{"index":0,"embedding":[ ]}]}'),
    ("embeddings", b'{"data":[{"index":0,"embedding":""}]}'),
    *(("embeddings", b'{"data":[%b]}' % entry) for entry in (
        b"null", b"{}", b'"x"', b'{"embeddings":[]}', b'{"embedding":["a"]}', b'{"embedding":[null,null]}', b'{"embedding":{}}')),
    *(("rerank", b'{"results":%b}' % results) for results in (
        b"[]", b"[null]", b"[{}]", b'[{"index":0}]', b'{"index":0,"score":1}')),
    ("rerank", b"[]"),
    ("rerank", b'[{"error":{"message":"x"}}]'),
    ("chat", b'{"choices":[{"message":null,"finish_reason":"stop"}]}'),
    ("chat", b'{"choices":[{"message":{"content":null},"finish_reason":null}]}'),
    ("chat", b'{"choices":[{"message":{"content":""}}]}'),
    ("chat", b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"abort"}]}'),
    ("completions", b'{"choices":[{"text":null,"finish_reason":"stop"}]}'),
    ("completions", b'{"choices":[{"text":"","finish_reason":null}]}'),
    ("responses", b'{"status":"in_progress","output":[]}'),
    ("responses", b'{"status":"queued","background":false}'),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "body"), GOOD)
def test_a_response_is_accepted(operation: str, body: Any) -> None:
    raw = json.dumps(body).encode()
    whole_response.check_start(operation, JSON, raw)
    whole_response.check(operation, raw)


def test_finish_and_usage_are_found() -> None:
    finish, usage = whole_response.check("chat", json.dumps({**CHAT, "usage": {"prompt_tokens": "3"}}).encode())
    assert usage is not None
    assert (finish, usage.prompt_tokens, usage.completion_tokens) == ("stop", 3, 0)


@pytest.mark.parametrize(("operation", "body"), BAD)
def test_what_is_no_response_is_broken(operation: str, body: bytes) -> None:
    for read in (whole_response.check, whole_response.decode):
        with pytest.raises(BackendBroken):
            list(read(operation, body) or ())


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "out of memory", "code": 507}},
        {"object": "error", "message": "out of memory", "code": 507},
        [{"error": {"message": "out of memory", "code": 507}}],
        {"choices": [{"error": {"message": "out of memory", "code": 507}, "message": {}}]},
    ],
)
def test_an_error_is_raised_with_its_status(body: Any) -> None:
    with pytest.raises(BackendBroken, match="out of memory") as raised:
        whole_response.check("chat", json.dumps(body).encode())
    assert raised.value.backend_status == 507
    assert b"out of memory" in raised.value.body


def test_no_vectors_are_right_for_no_texts() -> None:
    for sent in (b"{}", b'{"input": []}', b'{"input": ""}'):
        whole_response.check("embeddings", b'{"data":[]}', sent)
    for sent in (b'{"input": ["a"]}', b'{"input": "a"}', b"", b"--form"):
        with pytest.raises(BackendBroken):
            whole_response.check("embeddings", b'{"data":[]}', sent)


@pytest.mark.parametrize(
    ("given", "vectors", "is_right"),
    [
        *(("a", 1, True), ([1, 2, 3], 1, True), (["a"], 1, True), (["a"], 2, True)),
        *(([[1], [2]], 2, True), ([[1], [2]], 1, False), (["a", "b", "c"], 3, True), (["a", "b", "c"], 2, False)),
    ],
)
@pytest.mark.parametrize("size", [2, 100_000])
def test_each_input_has_a_vector(given: Any, vectors: int, is_right: bool, size: int) -> None:
    """Also in responses that are too long to be kept."""
    sent = json.dumps({"input": given}).encode()
    vector = {"object": "embedding", "embedding": [0.5] * size}
    raw = json.dumps({"data": [{**vector, "index": index} for index in range(vectors)]}).encode()
    for fields in (False, True):
        parser = OpenAIParser("embeddings", fields=fields, sent=sent)
        parser.start(ResponseHead(media_type=JSON))
        with nullcontext() if is_right else pytest.raises(BackendBroken, match="inputs"):
            for at in range(0, len(raw), 70_001):
                list(parser.feed(raw[at : at + 70_001]))
            list(parser.finish())


def test_vectors_in_plain_bytes_are_passed_on() -> None:
    for form in ("bytes", "bytes_only"):
        body = json.dumps({"model": "m", "input": ["a", "b"], "encoding_format": form}).encode()
        origin = Origin(wire="openai", operation="embeddings", body=body)
        parser = OpenAIUpstream().parser(EmbedRequest(origin=origin), fields=False)
        parser.start(ResponseHead(media_type="application/octet-stream"))
        assert b"".join(chunk.raw for chunk in (*parser.feed(b"\0\1"), *parser.finish())) == b"\0\1"


def test_no_scores_are_right_for_no_documents() -> None:
    for sent in (b'{"documents": []}', b'{"documents": ["a"], "top_n": 0}'):
        whole_response.check("rerank", b'{"results":[]}', sent)
    with pytest.raises(BackendBroken):
        whole_response.check("rerank", b'{"results":[]}', b'{"documents": ["a"]}')


def test_only_json_operations_are_judged_by_their_start() -> None:
    whole_response.check_start("speech", "audio/wav", b"RIFF")
    whole_response.check_start("speech", "text/html", b"RIFF")
    whole_response.check_start("transcriptions", "text/vtt", b"<v Roger>Hello")
    whole_response.check_start("chat", JSON, b"\r\n")
    for operation, media_type in (("chat", JSON), ("speech", "text/html"), ("transcriptions", "Text/HTML")):
        with pytest.raises(BackendBroken):
            whole_response.check_start(operation, media_type, b" <html>")


def test_an_error_of_any_operation_is_found() -> None:
    assert whole_response.reported(b'{"error": {"message": "x"}}') is not None
    assert whole_response.reported(b'{"text": "x"}') is None
    assert whole_response.reported(b"RIFF") is None
