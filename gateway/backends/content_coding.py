"""Decompresses an answer that a backend compressed although it was asked not to, in small steps.

A few kilobytes can stand for gigabytes, so that a step produces no more than `STEP` bytes, whatever arrives.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

#: Bytes that one step produces, at most.
STEP = 256 * 1024


class UnknownCoding(Exception):
    """A coding that is not supported, or bytes that do not follow it."""


class Decompressor:
    """`steps` of each piece as it arrives; `complete` after the last one."""

    def __init__(self, coding: str) -> None:
        """Raises `UnknownCoding`."""
        if coding not in ("gzip", "x-gzip", "deflate"):
            raise UnknownCoding(coding)
        # Detects gzip and zlib from the first bytes.
        self._decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def steps(self, data: bytes) -> Iterator[bytes]:
        """What the piece stands for. Raises `UnknownCoding`."""
        while data:
            try:
                step = self._decompressor.decompress(data, STEP)
            except zlib.error as error:
                raise UnknownCoding(str(error)) from None
            data = self._decompressor.unconsumed_tail
            if step:
                yield step

    @property
    def complete(self) -> bool:
        """Whether the compressed data has ended."""
        return self._decompressor.eof
