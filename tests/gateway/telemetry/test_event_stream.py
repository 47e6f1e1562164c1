"""An event stream for many readers: joined once, in bounded memory."""

from __future__ import annotations

import anyio
import pytest

from hostler.gateway.telemetry.event_stream import EventStream, frame

pytestmark = pytest.mark.anyio


async def test_all_readers_get_the_same_chunk() -> None:
    stream = EventStream(pace_s=0.01)
    with stream.reader() as one, stream.reader() as other:
        stream.add(b"a")
        stream.add(b"b")
        first, second = await anext(one), await anext(other)
    assert first == b"ab"
    assert second is first  # joined once for all readers


async def test_nothing_is_kept_without_readers() -> None:
    stream = EventStream()
    assert stream.readers == 0
    for _ in range(10_000):
        stream.add(b"x" * 100)
    assert stream._frames.maxlen is None
    assert not stream._frames


async def test_a_reader_that_fell_behind_gets_none() -> None:
    stream = EventStream(max_frames=10, pace_s=0.01)
    with stream.reader() as stalled, stream.reader() as quick:
        seen = b""
        for number in range(100):
            stream.add(b"%02d" % number)
            if number % 5 == 4:
                seen += await anext(quick) or b"missed"
        assert seen == b"".join(b"%02d" % number for number in range(100))
        assert await anext(stalled) is None
        stream.add(b"on")
        assert await anext(stalled) == b"on"


async def test_memory_is_bounded_by_bytes_too() -> None:
    stream = EventStream(max_bytes=1000, pace_s=0.01)
    with stream.reader() as reader:
        for _ in range(50):
            stream.add(b"x" * 100)
        assert await anext(reader) is None
        assert sum(len(each) for each in stream._frames) <= 1000


async def test_close_ends_every_reader() -> None:
    stream = EventStream()
    with anyio.fail_after(20), stream.reader() as reader:
        stream.close()
        assert [chunk async for chunk in reader] == []


def test_line_ends_in_text_do_not_break_a_frame() -> None:
    assert frame("line", {"text": "a\nevent: evil\n\n"}) == b'event: line\ndata: {"text":"a\\nevent: evil\\n\\n"}\n\n'
