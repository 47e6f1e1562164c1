"""Frames: encoded, cut out of any pieces of the stream, and refused if they are not what they should be."""

from __future__ import annotations

import itertools
import math

import msgspec
import pytest

from hostler.adapters.canonical import Usage
from hostler.supervisor.contract import EngineAddress, HostStatus, ProfileInfo, PromptIdentity
from hostler.supervisor.lease_frames import (
    MAX_REQUEST,
    AskFrame,
    GrantFrame,
    HelloFrame,
    HostFrame,
    InvalidAsk,
    InvalidFrame,
    PingFrame,
    ReleaseFrame,
    encode_frames,
    event_reader,
    request_reader,
)
from hostler.supervisor.scheduling.queue import MAX_PRIORITY
from hostler.supervisor.scheduling.types import SchedulerSettings

REQUESTS = [
    HelloFrame("instance", "name", SchedulerSettings(max_waiting=3), (1, 2)),
    AskFrame(1, "m", "anna", "req-1", 3, math.inf, 1.5),
    AskFrame(2, "m", prompt=PromptIdentity("chat", ((2**47, 10), (5, 20)))),
    PingFrame(),
    ReleaseFrame(1, answered=True, usage=Usage(prompt_tokens=3)),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_frames_survive_however_they_are_cut(size: int) -> None:
    data, reader = encode_frames(REQUESTS), request_reader()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert list(itertools.chain.from_iterable(reader.feed(piece) for piece in pieces)) == REQUESTS


def test_events_carry_the_contracts_own_values() -> None:
    address = EngineAddress(model="m", host="h", port=1, key="k", generation=2, context=3, parallel=4)
    events = [GrantFrame(7, address, 0.5, 0.25, 3), HostFrame(HostStatus(profiles=(ProfileInfo(name="m"),)))]
    assert list(event_reader().feed(encode_frames(events))) == events


def raw(*values: object) -> bytes:
    frame = msgspec.msgpack.encode(values)
    return len(frame).to_bytes(4, "big") + frame


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        (MAX_REQUEST + 1).to_bytes(4, "big"),
        b"\xff\xff\xff\xff",
        b"\0\0\0\x01\xc1",
        b"\0\0\0\0",
        raw("what"),
        raw("ask"),
        raw("ask", 0, "m"),
        raw("ask", -1, "m"),
        raw("ask", 2**60, "m"),
        raw("ask", "1", "m"),
        raw("hello", "i", "n", {"patience_s": -1.0}),
        raw("hello", "i", "n\n", {}),
        raw("hello", "", "a fake line", {}),
        raw("release", 1, True, {"prompt_tokens": "x"}),
        raw({}),
        b"\0\0\x10\0" + b"\x91" * 4096,
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidFrame):
        list(request_reader().feed(data))


@pytest.mark.parametrize(
    "data",
    [
        raw("ask", 7),
        raw("ask", 7, "m" * 201),
        raw("ask", 7, "m", "", "", MAX_PRIORITY + 1),
        raw("ask", 7, "m", "", "", -MAX_PRIORITY - 1),
        raw("ask", 7, "m", "", "", 0, math.nan),
        raw("ask", 7, "m", "", "", 0, -1.0),
        raw("ask", 7, "m", "", "", 0, None, math.inf),
        raw("ask", 7, {}),
    ],
)
def test_an_ask_that_breaks_a_rule_can_be_refused_by_its_id(data: bytes) -> None:
    [first, second] = request_reader().feed(data + encode_frames([PingFrame()]))
    assert isinstance(first, InvalidAsk) and (first.id, second) == (7, PingFrame())
    assert first.problem


def test_a_later_release_may_add_fields_to_a_frame() -> None:
    assert list(request_reader().feed(raw("release", 1, False, None, False, "new"))) == [ReleaseFrame(1)]
