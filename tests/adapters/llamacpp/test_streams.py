"""llama-server's requests about streams that can be resumed."""

from __future__ import annotations

import json

import pytest

from hostler.adapters.base import Incoming
from hostler.adapters.canonical import StoredRequest
from hostler.adapters.errors import BadRequest
from hostler.adapters.llamacpp.adapter import LlamaCppAdapter
from hostler.adapters.stored_response import StreamInfo

ADAPTER = LlamaCppAdapter()
INFO = StreamInfo(conversation="c", is_done=True, total_bytes=9, started_at=17, completed_at=18)


def requested(name: str, *, query: str = "", body: bytes = b"") -> StoredRequest:
    operation = next(each for each in ADAPTER.operations if each.resumes and each.name == name)
    method = operation.methods[0]
    request = ADAPTER.decode(operation, Incoming(method=method, path=operation.path, query=query, body=body))
    assert isinstance(request, StoredRequest)
    return request


def test_a_conversation_and_an_offset_are_read() -> None:
    request = requested("follow", query="conv_id=a%20b&from=17")
    assert (request.id, request.start) == ("a b", 17)
    assert requested("follow", query="conv_id=c").start == 0
    assert requested("stop", query="conv_id=c").id == "c"
    body = b'{"conversation_ids": ["a", 3, "", "b"]}'
    assert requested("lookup", body=body).ids == ("a", "b")
    assert requested("lookup", body=b"{}").ids == ()


@pytest.mark.parametrize(
    ("name", "query", "body"),
    [
        ("follow", "", b""), ("follow", "conv_id=", b""), ("follow", "conv_id=c&from=1.5", b""), ("stop", "", b""),
        ("follow", "conv_id=c&from=" + "9" * 30, b""), ("lookup", "", b'{"conversation_ids": "c"}'), ("lookup", "", b"x"),
    ],
)  # fmt: skip
def test_what_is_no_request_for_a_stream_is_refused(name: str, query: str, body: bytes) -> None:
    with pytest.raises(BadRequest):
        requested(name, query=query, body=body)


def test_streams_are_listed_in_llama_servers_form() -> None:
    response = ADAPTER.stream_info(requested("lookup", body=b"{}"), [INFO])
    assert json.loads(response.body) == [
        {"conversation_id": "c", "is_done": True, "total_bytes": 9, "started_at": 17, "completed_at": 18}
    ]
    stopped = ADAPTER.stream_info(requested("stop", query="conv_id=c"), [])
    assert (stopped.status, stopped.body) == (204, b"")
