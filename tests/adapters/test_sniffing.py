"""A response is what its first bytes say."""

from __future__ import annotations

from itertools import pairwise

import pytest

from hostler.adapters.canonical import ResponseHead
from hostler.adapters.sniffing import ResponseStart, actual_head, without_mark

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


EVENT, OBJECT, MARK, COMMENT = b'data: {"a":1}\n\n', b'{"a":1}', b"\xef\xbb\xbf", b": hello\n\n"


@pytest.mark.parametrize("label", [JSON, SSE, "application/octet-stream", "text/plain", ""])
@pytest.mark.parametrize(
    ("sent", "actual", "given"),
    [
        (EVENT, SSE, EVENT), (OBJECT, JSON, OBJECT), (b"\n" + OBJECT, JSON, b"\n" + OBJECT), (b"\r\n" + EVENT, SSE, None),
        (MARK + OBJECT, JSON, OBJECT), (MARK + EVENT, SSE, EVENT), (COMMENT + EVENT, SSE, COMMENT + EVENT),
        (COMMENT + OBJECT, JSON, None), (COMMENT * 3 + b"\n" + OBJECT, JSON, None), (b"event: x\n" + EVENT, SSE, None),
    ],
)  # fmt: skip
def test_a_response_is_the_same_wherever_its_start_is_cut(
    label: str, sent: bytes, actual: str, given: bytes | None
) -> None:
    for places in [(at,) for at in range(len(sent))] + [tuple(range(1, len(sent)))]:
        start = ResponseStart(ResponseHead(media_type=label, length=len(sent)))
        head, got = None, b""
        edges = [0, *places, len(sent)]
        for begin, end in pairwise(edges):
            changed, rest = start.feed(sent[begin:end]) if not start.is_known else (None, sent[begin:end])
            if changed is not None:
                head, got = changed, b""
            got += rest
        if not start.is_known:
            changed, rest = start.finish()
            head, got = changed or head, got + rest
        assert head is not None
        assert head.media_type == actual, places
        if actual == JSON:
            assert got.strip() == OBJECT
            assert head.length in (None, len(got))
        assert given is None or got == given


@pytest.mark.parametrize("sent", [b" " * 2000, b"\n" * 2000])
def test_a_start_is_not_held_back_for_ever(sent: bytes) -> None:
    start = ResponseStart(ResponseHead(media_type=JSON))
    fed = [start.feed(sent[at : at + 1]) for at in range(len(sent))]
    assert len(b"".join(rest for _, rest in fed)) > 900


@pytest.mark.parametrize(("label", "sent"), [("audio/pcm", b"d"), ("audio/wav", b"\n"), ("image/png", b"\xef")])
def test_binary_responses_are_not_held_back(label: str, sent: bytes) -> None:
    assert ResponseStart(ResponseHead(media_type=label)).feed(sent)[1] == sent


def test_comments_are_passed_on_while_json_may_follow() -> None:
    start = ResponseStart(ResponseHead(media_type=SSE))
    head, rest = start.feed(COMMENT)
    assert head is not None
    assert (head.media_type, rest, start.is_known) == (SSE, COMMENT, False)
    assert start.feed(COMMENT) == (None, COMMENT)
    head, rest = start.feed(OBJECT)
    assert head is not None
    assert (head.media_type, rest, start.is_known) == (JSON, OBJECT, True)
