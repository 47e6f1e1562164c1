"""Events come out whole and the same, wherever the stream was cut."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.adapters import sse
from hostler.adapters.errors import BackendBroken

PARTS = [
    b"data: {}\n\n",
    b"data:x\r\n\r\n",
    b": hi\n\n",
    b"event: a\ndata: 1\ndata: 2\n\n",
    b"data: \xc3\xa9\n\n",
    b"data: a\rb\n\n",
]


@given(st.lists(st.sampled_from(PARTS), max_size=8), st.lists(st.integers(0, 120), max_size=12))
def test_any_segmentation_gives_the_same_events(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts) + b"data: unfinished"
    splitter = sse.EventSplitter()
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    blocks = [splitter.feed(stream[a:b]) for a, b in pairwise(places)]
    assert b"".join(blocks) == b"".join(parts)
    assert [event for block in blocks if block for event in sse.split(block)] == parts
    assert splitter.remainder() == b"data: unfinished"


@given(st.integers(1, 40))
def test_a_reader_gives_names_and_data_and_drops_comments(size: int) -> None:
    stream = b"".join(PARTS) + b"data: unfinished"
    reader = sse.EventReader()
    events = [event for at in range(0, len(stream), size) for event in reader.feed(stream[at : at + size])]
    assert events == [("", b"{}"), ("", b"x"), ("a", b"1\n2"), ("", b"\xc3\xa9"), ("", b"a\rb")]


@pytest.mark.parametrize(
    ("event", "parsed"),
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
def test_an_event_is_parsed_as_the_standard_says(event: bytes, parsed: tuple[str, bytes | None]) -> None:
    assert sse.parse(event) == parsed


def test_an_event_without_end_is_not_collected_for_ever() -> None:
    splitter = sse.EventSplitter(limit=1000)
    splitter.feed(b"data: " + b"x" * 900)
    with pytest.raises(BackendBroken, match="more than 1000 bytes"):
        splitter.feed(b"x" * 200)


def test_a_comment_stays_on_one_line() -> None:
    assert sse.comment("a\n\ndata: {}\r\n b") == b": a data: {} b\n"


def test_events_are_found_in_linear_time_whatever_ends_their_lines() -> None:
    """A block of 1 MiB takes milliseconds; read to its end for each event, it took 8 s."""
    event = b'data: {"choices":[{"delta":{"content":"word"}}]}\r\n\r\n'
    for block in (
        event * 20_000,
        event.replace(b"\r", b"") * 20_000 + event,
        event + event.replace(b"\r", b"") * 20_000,
    ):
        began_at = time.process_time()
        found = sse.split(block)
        assert time.process_time() - began_at < 2.0
        assert b"".join(found) == block and len(found) in (20_000, 20_001)
