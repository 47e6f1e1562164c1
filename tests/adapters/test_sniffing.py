"""A response is what its first bytes say."""

from __future__ import annotations

import pytest

from hostler.adapters.canonical import ResponseHead
from hostler.adapters.sniffing import actual_head, without_mark

JSON, SSE, LINES = "application/json", "text/event-stream", "application/x-ndjson"


@pytest.mark.parametrize(
    ("label", "start", "actual"),
    [
        (JSON, b'{"a":1}', JSON), ("application/json; charset=utf-8", b"{", "application/json; charset=utf-8"),
        (SSE, b"data: {}\n\n", SSE), ("Text/Event-Stream; charset=utf-8", b": hi\n", "Text/Event-Stream; charset=utf-8"),
        (LINES, b"{", LINES), ("text/plain", b" \r\n{", JSON), ("", b"[", JSON), (SSE, b'{"error":1}', JSON),
        (JSON, b"data: x\n\n", SSE), ("text/plain", b"event: x\n", SSE), ("text/html", b": ping\n\n", SSE),
        ("text/plain", b"\n\nid: 3\n", SSE), (JSON, b'error: {"a":1}\n\n', SSE), ("text/html", b"<html>", "text/html"),
        (JSON, b"<html>", JSON), (JSON, b"", JSON), ("audio/wav", b"RIFF", "audio/wav"),
    ],
)  # fmt: skip
def test_the_first_bytes_decide(label: str, start: bytes, actual: str) -> None:
    assert actual_head(ResponseHead(media_type=label), start).media_type == actual


def test_a_right_label_costs_no_new_head() -> None:
    for head, start in ((ResponseHead(media_type=JSON), b"{}"), (ResponseHead(media_type=SSE), b"data: 1\n\n")):
        assert actual_head(head, start) is head


def test_a_byte_order_mark_does_not_count() -> None:
    head, start = without_mark(ResponseHead(length=5), b"\xef\xbb\xbf{}")
    assert (head.length, start) == (2, b"{}")
    plain = ResponseHead(length=2)
    assert without_mark(plain, b"{}") == (plain, b"{}")
    assert without_mark(ResponseHead(), b"\xef\xbb\xbf{}")[0].length is None
