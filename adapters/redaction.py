"""Removes a key from what its recipient sends back, wherever it comes: a server may echo the headers it received.

Replacements have the length of what they replace, so that framing stays valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import msgspec

from hostler.adapters.canonical import ResponseHead

#: Shorter keys are ordinary words.
_MIN_LENGTH = 8
#: What is configured where a server wants some key, but does not check it: no secrets, and words of normal answers.
_PLACEHOLDERS = frozenset(
    (
        *("anything", "api-key", "changeme", "lm-studio", "no-key-required", "not-needed", "not-required"),
        *("ollama-key", "password", "placeholder", "sk-no-key-required", "sk-placeholder", "something"),
    )
)


class Redactor:
    """One response's bytes, in pieces: `feed` each, then `rest` once at the end.

    A piece that may end within the key is held back up to there.
    """

    __slots__ = ("_held", "_last", "_needles")

    def __init__(self, needles: tuple[tuple[bytes, bytes], ...], last: frozenset[int]) -> None:
        self._needles = needles
        self._last = last
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may be passed on by now; empty if all of it is held back."""
        if self._held:
            data = self._held + data
            self._held = b""
        for needle, stars in self._needles:
            if needle in data:
                data = data.replace(needle, stars)
        # Events and lines end with characters that no key has, so hardly any piece is searched.
        if data and data[-1] in self._last:
            return self._without_beginning(data)
        return data

    def rest(self) -> bytes:
        """What was held back, after the last piece."""
        held, self._held = self._held, b""
        return held

    def head(self, head: ResponseHead) -> ResponseHead:
        """The head without the key."""
        media_type = self._text(head.media_type)
        return head if media_type is head.media_type else msgspec.structs.replace(head, media_type=media_type)

    def headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers without the key."""
        return {self._text(name): self._text(value) for name, value in headers.items()}

    def _text(self, value: str) -> str:
        data = value.encode("latin-1", "replace")
        if not any(needle in data for needle, _ in self._needles):
            return value
        for needle, stars in self._needles:
            data = data.replace(needle, stars)
        return data.decode("latin-1")

    def _without_beginning(self, data: bytes) -> bytes:
        """The data without the longest end that is the beginning of a needle, which is held back."""
        longest = 0
        for needle, _ in self._needles:
            for length in range(min(len(needle) - 1, len(data)), longest, -1):
                if data.endswith(needle[:length]):
                    longest = length
                    break
        if longest:
            self._held = data[-longest:]
            return data[:-longest]
        return data


def redactor(key: str | None, others: tuple[str, ...] = ()) -> Redactor | None:
    """For one response of a backend that was sent `key`, and perhaps other secrets; `None` without one that is worth
    it."""
    needles, last = _needles(key) if not others else _all_needles(key, others)
    return Redactor(needles, last) if needles else None


def redacted(data: bytes, key: str | None) -> bytes:
    """The whole of a body without `key`."""
    redacting = redactor(key)
    return data if redacting is None else redacting.feed(data) + redacting.rest()


@lru_cache(maxsize=256)
def _needles(key: str | None) -> tuple[tuple[tuple[bytes, bytes], ...], frozenset[int]]:
    """The spellings of a key in JSON, each with its replacement, and the bytes that a part of one may end with."""
    if key is None or len(key) < _MIN_LENGTH or key.lower() in _PLACEHOLDERS:
        return (), frozenset()
    raw = key.encode("latin-1", "replace")
    spellings = {raw, raw.replace(b"/", b"\\/")}
    for form in ("\\u%04x", "\\u%04X"):
        spellings.add(b"".join(bytes((byte,)) if _is_plain(byte) else (form % byte).encode() for byte in raw))
    needles = tuple((spelling, b"*" * len(spelling)) for spelling in sorted(spellings, key=len, reverse=True))
    return needles, frozenset(byte for spelling in spellings for byte in spelling)


@lru_cache(maxsize=256)
def _all_needles(key: str | None, others: tuple[str, ...]) -> tuple[tuple[tuple[bytes, bytes], ...], frozenset[int]]:
    """The needles of several secrets, the longest first."""
    needles: set[tuple[bytes, bytes]] = set()
    last: set[int] = set()
    for secret in (key, *others):
        found, ends = _needles(secret)
        needles.update(found)
        last.update(ends)
    return tuple(sorted(needles, key=lambda each: len(each[0]), reverse=True)), frozenset(last)


def _is_plain(byte: int) -> bool:
    return bytes((byte,)).isalnum() or byte in b"-_."
