"""Events come out whole and the same, however the bytes were cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters import sse as framing
from hostler.adapters.errors import BackendBroken
from hostler.adapters.sse import EventSplitter

PARTS = [
    b"data: {}\n\n",
    b"data:x\r\n\r\n",
    b": hi\n\n",
    b"event: a\ndata: 1\ndata: 2\n\n",
    b"data: \xc3\xa9\n\n",
    b"data: a\rb\n\n",
]


@given(st.lists(st.sampled_from(PARTS), max_size=8), st.lists(st.integers(0, 120), max_size=12))
def test_any_cutting_gives_the_same_events(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts) + b"data: unfinished"
    splitter = EventSplitter()
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    blocks = [splitter.feed(stream[a:b]) for a, b in pairwise(places)]
    assert b"".join(blocks) == b"".join(parts)
    assert [event for block in blocks if block for event in framing.split(block)] == parts
    assert splitter.rest() == b"data: unfinished"


@pytest.mark.parametrize(
    ("event", "read"),
    [
        (b"data: {}\n\n", ("", b"{}")),
        (b"data:{}\n\n", ("", b"{}")),
        (b"data:  x\n\n", ("", b" x")),
        (b"event: error\r\ndata: 1\r\ndata: 2\r\n\r\n", ("error", b"1\n2")),
        (b": hello\n\n", ("", None)),
        (b"event: ping\n\n", ("ping", None)),
        (b": hello\ndata: 1\n\n", ("", b"1")),
    ],
)
def test_an_event_is_read_as_the_standard_says(event: bytes, read: tuple[str, bytes | None]) -> None:
    assert framing.read(event) == read


def test_an_event_without_end_is_not_collected_for_ever() -> None:
    splitter = EventSplitter(limit=1000)
    splitter.feed(b"data: " + b"x" * 900)
    with pytest.raises(BackendBroken, match="more than 1000 bytes"):
        splitter.feed(b"x" * 200)


def test_a_comment_stays_on_one_line() -> None:
    assert framing.comment("a\n\ndata: {}\r\n b") == b": a data: {} b\n"
