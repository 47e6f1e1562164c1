"""What a parser holds back of a stream: chunks that only open the response, and signs of life."""

from __future__ import annotations

from collections.abc import Iterable

from hostler.adapters.canonical import Chunk

#: Signs of life are kept up to this size, in bytes: they may go on for as long as a backend thinks.
MAX_SIGNS = 64 * 1024


class HeldChunks:
    """Held chunks in their order. `openings` counts those that are not signs of life."""

    __slots__ = ("_chunks", "_signs", "_size", "openings")

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self._signs: list[Chunk] = []
        self._size = 0
        self.openings = 0

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Hold chunks that open the response."""
        before = len(self._chunks)
        self._chunks += chunks
        self.openings += len(self._chunks) - before

    def add_sign(self, wire: str, raw: bytes) -> None:
        """Hold a sign of life; beyond `MAX_SIGNS` it is dropped."""
        if self._size + len(raw) > MAX_SIGNS:
            return
        self._size += len(raw)
        if self._signs and self._chunks[-1] is self._signs[-1]:
            self._signs[-1].raw += raw
            return
        sign = Chunk(wire=wire, raw=raw)
        self._chunks.append(sign)
        self._signs.append(sign)

    def take_signs(self) -> bytes:
        """The bytes of the signs of life; only the other chunks are still held."""
        signs = self._signs
        if not signs:
            return b""
        self._chunks = [chunk for chunk in self._chunks if not any(chunk is sign for sign in signs)]
        self._signs, self._size = [], 0
        return b"".join(sign.raw for sign in signs)

    def take(self) -> list[Chunk]:
        """All of it; nothing is held any more."""
        chunks = self._chunks
        self._chunks, self._signs, self._size, self.openings = [], [], 0, 0
        return chunks
