"""The frames of one direction of a WebSocket connection: where each ends, and close frames. Payloads are not looked at."""

from __future__ import annotations

import struct

GOING_AWAY = 1001
INTERNAL_ERROR = 1011

_CLOSE = 8
_LENGTHS = {126: 2, 127: 8}


class FrameScanner:
    """Follows the frames in bytes that pass by.

    `closed`: a close frame has passed. `at_boundary`: the next byte begins a frame, so another one can be put in front
    of it.
    """

    __slots__ = ("_header", "_payload_left", "closed")

    def __init__(self) -> None:
        self._header = bytearray()
        self._payload_left = 0
        self.closed = False

    @property
    def at_boundary(self) -> bool:
        return not (self._header or self._payload_left)

    def feed(self, data: bytes) -> None:
        """The next bytes of the direction."""
        view = memoryview(data)
        while view:
            if self._payload_left:
                step = min(self._payload_left, len(view))
                self._payload_left -= step
                view = view[step:]
                continue
            missing = _header_size(self._header) - len(self._header)
            self._header += view[:missing]
            view = view[missing:]
            if len(self._header) == _header_size(self._header):
                self._payload_left = _payload_size(self._header)
                self.closed = self.closed or self._header[0] & 0xF == _CLOSE
                self._header.clear()


def close_frame(code: int) -> bytes:
    """A close frame as servers send it."""
    return struct.pack("!BBH", 0x80 | _CLOSE, 2, code)


def _header_size(header: bytearray) -> int:
    """The size of a frame's header, as far as its first bytes say."""
    if len(header) < 2:
        return 2
    masked = bool(header[1] & 0x80)
    return 2 + _LENGTHS.get(header[1] & 0x7F, 0) + 4 * masked


def _payload_size(header: bytearray) -> int:
    short = header[1] & 0x7F
    size = _LENGTHS.get(short)
    return short if size is None else int.from_bytes(header[2 : 2 + size], "big")
