"""Reranking with documents as objects, and with the documents in the response."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostler.adapters.canonical import Chunk, ResponseHead
from hostler.adapters.openai.rerank import RerankEncoder, plain_documents, wants_documents

RESULTS = b'{"results":[{"index":1,"relevance_score":0.9},{"index":0,"relevance_score":0.1}]}'


@pytest.mark.parametrize(
    ("documents", "plain"),
    [
        (["a", {"text": "b"}], b'["a","b"]'),
        (["a {", "b"], b'["a {","b"]'),
        (["a", "b"], None),
        ([{"image": "x"}], None),
        ({"text": "a"}, None),
    ],
)
def test_documents_as_objects_become_strings(documents: Any, plain: bytes | None) -> None:
    assert plain_documents(json.dumps({"documents": documents}).encode()) == plain


def test_documents_are_returned_only_on_request() -> None:
    assert wants_documents(b'{"return_documents":true}')
    assert not wants_documents(b'{"return_documents":false}')
    assert not wants_documents(b"{}")


def encoded(request: bytes, response: bytes) -> tuple[bytes, int | None]:
    encoder = RerankEncoder(request)
    encoder.start(ResponseHead(length=len(response)))
    assert encoder.encode(Chunk(raw=response[:9], is_body=True)) + encoder.encode(Chunk(raw=response[9:])) == b""
    return encoder.finish(), encoder.length


def test_the_response_has_the_documents() -> None:
    body, length = encoded(b'{"documents":["a",{"text":"b"}]}', RESULTS)
    assert [result["document"]["text"] for result in json.loads(body)["results"]] == ["b", "a"]
    assert length == len(body)


@pytest.mark.parametrize("response", [b"no json", b'{"error":"x"}', b'{"results":[{"index":7}]}'])
def test_a_response_of_another_form_stays_as_it_is(response: bytes) -> None:
    assert encoded(b'{"documents":["a"]}', response)[0] == response
