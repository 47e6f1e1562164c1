"""Frames for many readers: put together once, in bounded memory, whoever reads how slowly."""

from __future__ import annotations

import anyio
import pytest

from hostler.gateway.telemetry.event_stream import EventStream, frame

pytestmark = pytest.mark.anyio


async def test_all_readers_get_the_same_piece() -> None:
    broadcast = EventStream(pace_s=0.01)
    with broadcast.reader() as one, broadcast.reader() as other:
        broadcast.add(b"a")
        broadcast.add(b"b")
        first, second = await anext(one), await anext(other)
    assert first == b"ab"
    assert second is first  # made once, however many read


async def test_nobody_reading_costs_nothing() -> None:
    broadcast = EventStream()
    assert not broadcast.has_readers
    for _ in range(10_000):
        broadcast.add(b"x" * 100)
    assert broadcast._frames.maxlen is None
    assert not broadcast._frames


async def test_a_reader_that_stalls_is_told_that_it_missed_something() -> None:
    broadcast = EventStream(max_frames=10, pace_s=0.01)
    with broadcast.reader() as stalled, broadcast.reader() as quick:
        seen = b""
        for number in range(100):
            broadcast.add(b"%02d" % number)
            if number % 5 == 4:
                seen += await anext(quick) or b"missed"
        assert seen == b"".join(b"%02d" % number for number in range(100))
        assert await anext(stalled) is None
        broadcast.add(b"on")
        assert await anext(stalled) == b"on"


async def test_memory_is_bounded_by_size_too() -> None:
    broadcast = EventStream(max_bytes=1000, pace_s=0.01)
    with broadcast.reader() as reader:
        for _ in range(50):
            broadcast.add(b"x" * 100)
        assert await anext(reader) is None
        assert sum(len(each) for each in broadcast._frames) <= 1000


async def test_closing_ends_every_reader() -> None:
    broadcast = EventStream()
    with anyio.fail_after(5), broadcast.reader() as reader:
        broadcast.close()
        assert [piece async for piece in reader] == []


def test_a_frame_is_one_event_whatever_the_text() -> None:
    assert frame("line", {"text": "a\nevent: evil\n\n"}) == b'event: line\ndata: {"text":"a\\nevent: evil\\n\\n"}\n\n'
