"""A request whose head is the same as the previous one's on its connection."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.gateway.asgi import HEAD
from hostler.gateway.server.head_cache import HeadCache


def request(body: bytes, *, path: bytes = b"/v1/embeddings", length: bytes | None = None) -> bytes:
    digits = str(len(body)).encode() if length is None else length
    return b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\n%s" % (path, digits, body)


def scope(length: int) -> Any:
    headers = [(b"host", b"a"), (b"content-length", str(length).encode())]
    return {"type": "http", "path": "/v1/embeddings", "headers": headers, "state": {}}


def remembering(body: bytes) -> HeadCache:
    cache = HeadCache()
    cache.remember(request(body), scope(len(body)))
    return cache


def test_an_empty_cache_matches_nothing() -> None:
    assert HeadCache().match(request(b"{}")) is None


@pytest.mark.parametrize("body", [b"{}", b"[1]", b'{"input": "a longer text"}', b""])
def test_the_same_head_matches_with_any_body(body: bytes) -> None:
    found = remembering(b"{}").match(request(body))
    assert found is not None
    assert found[1] == body
    assert found[0]["headers"] == [(b"host", b"a"), (b"content-length", str(len(body)).encode())]
    assert found[0]["extensions"] == {HEAD: {"length_at": 1}}


def test_a_match_shares_no_state_with_the_remembered_request() -> None:
    cache = remembering(b"{}")
    first, second = cache.match(request(b"{}")), cache.match(request(b"{}"))
    assert first is not None
    assert second is not None
    first[0]["state"]["key"] = 1
    assert second[0]["state"] == {}


@pytest.mark.parametrize(
    "data",
    [
        request(b"{}", path=b"/v1/models"),
        request(b"{}")[:-1],
        request(b"{}") + request(b"{}"),
        request(b"{}", length=b"02"),
        request(b"{}", length=b"+2"),
        request(b"{}", length=b""),
        request(b"{}").replace(b"Host", b"host"),
    ],
    ids=["other path", "part of a body", "two requests", "leading zero", "sign", "no length", "other spelling"],
)
def test_anything_else_is_left_to_the_parser(data: bytes) -> None:
    assert remembering(b"{}").match(data) is None


def test_a_request_whose_body_is_still_incomplete_is_not_remembered() -> None:
    cache = HeadCache()
    cache.remember(request(b"{}")[:-1], scope(2))
    assert cache.match(request(b"{}")) is None


def test_a_connection_whose_heads_never_repeat_is_given_up() -> None:
    cache = HeadCache()
    for number in range(8):
        data = request(b"{}", path=b"/%d" % number)
        cache.remember(data, scope(2))
    cache.remember(request(b"{}"), scope(2))
    assert cache.match(request(b"{}")) is None
