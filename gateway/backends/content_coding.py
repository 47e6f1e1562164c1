"""Decompresses bodies in small steps: requests, and answers that a backend compressed although it was asked not to.

A few kilobytes can stand for gigabytes, so that a step produces no more than `STEP` bytes, whatever arrives.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

#: Bytes that one step produces, at most.
STEP = 256 * 1024

#: The codings that can be read, as they are listed in `Accept-Encoding`.
CODINGS = ("gzip", "deflate", "br", "zstd")

#: Parts that compressed data may consist of: each costs a copy of what follows it.
_MAX_PARTS = 64

#: Brotli fills its last buffer beyond the limit, up to twice as much.
_BROTLI_STEP = STEP // 2

#: The largest window that a sender of zstd may require, as a power of two (RFC 9659).
_ZSTD_WINDOW_LOG = 23


class UnknownCoding(Exception):
    """A coding that is not supported, or bytes that do not follow it."""


class _Part(Protocol):
    """Decompresses one part of the data: `eof` after its end, and `rest` is what follows."""

    @property
    def eof(self) -> bool: ...

    @property
    def rest(self) -> bytes: ...

    def steps(self, data: bytes) -> Iterator[bytes]: ...


class Decompressor:
    """`steps` of each piece as it arrives; `complete` after the last one."""

    def __init__(self, coding: str) -> None:
        """Raises `UnknownCoding`."""
        start = _STARTS.get(coding)
        if start is None:
            raise UnknownCoding(coding)
        self._start = start
        self._part: _Part = start()
        self._parts = 1

    def steps(self, data: bytes) -> Iterator[bytes]:
        """What the piece stands for. Raises `UnknownCoding`."""
        while data:
            if self._part.eof:
                if self._parts >= _MAX_PARTS:
                    raise UnknownCoding("too many parts")
                self._part = self._start()
                self._parts += 1
            try:
                yield from self._part.steps(data)
            except Exception as error:
                if not isinstance(error, _errors()):
                    raise
                raise UnknownCoding(str(error)) from None
            data = self._part.rest

    @property
    def complete(self) -> bool:
        """Whether the compressed data has ended."""
        return self._part.eof


class _ZlibPart:
    """gzip or zlib, which differ in their first bytes."""

    def __init__(self, wbits: int = zlib.MAX_WBITS | 32) -> None:
        self._decompressor = zlib.decompressobj(wbits)

    @property
    def eof(self) -> bool:
        return self._decompressor.eof

    @property
    def rest(self) -> bytes:
        return self._decompressor.unused_data

    def steps(self, data: bytes) -> Iterator[bytes]:
        while data and not self.eof:
            step = self._decompressor.decompress(data, STEP)
            data = self._decompressor.unconsumed_tail
            if step:
                yield step


class _DeflatePart(_ZlibPart):
    """Deflate as HTTP means it, within zlib's frame, or bare, as some senders mean it."""

    def __init__(self) -> None:
        super().__init__()
        self._start = b""

    def steps(self, data: bytes) -> Iterator[bytes]:
        if len(self._start) < 2:
            data = self._start + data
            self._start = data[:2]
            if len(data) < 2:
                return
            if data[0] & 15 != zlib.DEFLATED or int.from_bytes(data[:2]) % 31:
                self._decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
        yield from super().steps(data)


class _BrotliPart:
    """Brotli has no parts: what follows the end is an error."""

    rest = b""

    def __init__(self) -> None:
        import brotli

        self._decompressor = brotli.Decompressor()

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.is_finished())

    def steps(self, data: bytes) -> Iterator[bytes]:
        step = self._decompressor.process(data, output_buffer_limit=_BROTLI_STEP)
        while step:
            yield step
            step = self._decompressor.process(b"", output_buffer_limit=_BROTLI_STEP)


class _ZstdPart:
    """One frame of zstd."""

    def __init__(self) -> None:
        module = _zstd()
        options = {module.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        self._decompressor = module.ZstdDecompressor(options=options)

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.eof)

    @property
    def rest(self) -> bytes:
        rest: bytes = self._decompressor.unused_data
        return rest

    def steps(self, data: bytes) -> Iterator[bytes]:
        step = self._decompressor.decompress(data, STEP)
        while step or not (self.eof or self._decompressor.needs_input):
            yield step
            step = b"" if self.eof else self._decompressor.decompress(b"", STEP)


_STARTS: dict[str, Callable[[], _Part]] = {
    "gzip": _ZlibPart,
    "x-gzip": _ZlibPart,
    "deflate": _DeflatePart,
    "br": _BrotliPart,
    "zstd": _ZstdPart,
}


def _zstd() -> Any:
    """Python's own module, or the one that brings it to older versions."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _errors() -> tuple[type[Exception], ...]:
    """What the libraries raise, as far as they were imported."""
    brotli, zstd = sys.modules.get("brotli"), sys.modules.get("backports.zstd") or sys.modules.get("compression.zstd")
    found = [zlib.error, *(() if brotli is None else (brotli.error,)), *(() if zstd is None else (zstd.ZstdError,))]
    return tuple(found)
