"""Frames of WebSocket connections, however their bytes are cut."""

from __future__ import annotations

import struct

import pytest

from hostler.gateway.backends.websocket_frames import FrameScanner, close_frame

TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


def frame(opcode: int, size: int, *, masked: bool) -> bytes:
    """A frame with a payload of so many close frames' first bytes."""
    head = bytes([0x80 | opcode])
    flag = 0x80 if masked else 0
    if size < 126:
        head += bytes([flag | size])
    elif size < 1 << 16:
        head += bytes([flag | 126]) + struct.pack("!H", size)
    else:
        head += bytes([flag | 127]) + struct.pack("!Q", size)
    return head + (b"\x88\x88\x88\x88" if masked else b"") + b"\x88" * size


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000, 1 << 20])
def test_the_end_of_each_frame_is_found(step: int, masked: bool) -> None:
    frames = [
        frame(opcode, size, masked=masked) for opcode in (TEXT, BINARY, PING) for size in (0, 1, 125, 126, 70_000)
    ]
    ends, end = set(), 0
    for each in frames:
        end += len(each)
        ends.add(end)
    data, scanner = b"".join(frames), FrameScanner()
    for start in range(0, len(data), step):
        scanner.feed(data[start : start + step])
        assert scanner.at_boundary == (min(start + step, len(data)) in ends)
    assert not scanner.closed


@pytest.mark.parametrize("step", [1, 4, 100])
def test_a_close_frame_is_noticed(step: int) -> None:
    data, scanner = frame(TEXT, 5, masked=True) + close_frame(1001), FrameScanner()
    for start in range(0, len(data), step):
        scanner.feed(data[start : start + step])
    assert scanner.closed and scanner.at_boundary


def test_a_close_frame_has_its_code() -> None:
    assert close_frame(1011) == b"\x88\x02" + (1011).to_bytes(2, "big")
