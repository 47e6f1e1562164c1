"""Removes a key from what its recipient sends back, wherever it comes: a server may echo the headers it received.

Replacements have the length of what they replace, so that framing stays valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import msgspec

from hostler.adapters.canonical import ResponseHead
from hostler.adapters.key_encodings import encodings

#: Shorter keys are ordinary words.
_MIN_LENGTH = 8
#: What is configured where a server wants some key, but does not check it: no secrets, and words of normal answers.
_PLACEHOLDERS = frozenset(
    (
        *("anything", "api-key", "changeme", "lm-studio", "no-key-required", "not-needed", "not-required"),
        *("ollama-key", "password", "placeholder", "sk-no-key-required", "sk-placeholder", "something"),
    )
)

#: Bytes of a character of a key, at most, where it may be cut off in the middle.
_MAX_SPELLED = 13
_BACKSLASH = ord("\\")
#: Characters that JSON may escape by a backslash alone.
_ESCAPED = b'"/\\'


class _Secrets(NamedTuple):
    """Secrets, the longest first; `encoded` are others of their forms, and `escaped` finds them with characters as JSON may
    escape them, once or several times over. `last` are the bytes that a part of one may end with."""

    keys: tuple[bytes, ...]
    encoded: tuple[bytes, ...]
    escaped: re.Pattern[bytes]
    last: frozenset[int]


class Redactor:
    """One response's bytes, in pieces: `feed` each, then `rest` once at the end.

    A piece that may end within the key is held back up to there.
    """

    __slots__ = ("_held", "_secrets")

    def __init__(self, secrets: _Secrets) -> None:
        self._secrets = secrets
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may be passed on by now; empty if all of it is held back."""
        if self._held:
            data = self._held + data
            self._held = b""
        data = self._cleaned(data)
        # Events and lines end with characters that no key has, so hardly any piece is searched.
        if data and data[-1] in self._secrets.last:
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
        cleaned = self._cleaned(data)
        return value if cleaned == data else cleaned.decode("latin-1")

    def _cleaned(self, data: bytes) -> bytes:
        for key in self._secrets.keys:
            if key in data:
                data = data.replace(key, b"*" * len(key))
        for form in self._secrets.encoded:
            if form in data:
                data = data.replace(form, b"*" * len(form))
        if b"\\u" in data or b"\\/" in data or b'\\"' in data:
            data = self._secrets.escaped.sub(_stars, data)
        return data

    def _without_beginning(self, data: bytes) -> bytes:
        """The data without the longest end that is the beginning of a key, which is held back."""
        keys, begun = self._secrets.keys, _begun(self._secrets.encoded, data)
        for start in range(max(0, len(data) - _MAX_SPELLED * len(keys[0])), begun):
            if any(_begins(key, data, start) for key in keys):
                begun = start
                break
        self._held = data[begun:]
        return data[:begun]


def _stars(match: re.Match[bytes]) -> bytes:
    return b"*" * len(match[0])


def _begun(forms: tuple[bytes, ...], data: bytes) -> int:
    """Where the first of these begins that the data ends within; the end if it does not."""
    begun = len(data)
    for form in forms:
        at = max(0, len(data) - len(form) + 1)
        while (at := data.find(form[0], at)) >= 0:
            if form.startswith(data[at:]):
                begun = min(begun, at)
                break
            at += 1
    return begun


def _begins(key: bytes, data: bytes, at: int) -> bool:
    """Whether the data from there on is a beginning of the key, however its characters are escaped."""
    for byte in key:
        if at == len(data):
            return True
        if data[at] == byte:
            at += 1
            continue
        start = at
        while at < len(data) and data[at] == _BACKSLASH:
            at += 1
        if at == start:
            return False
        rest, escape = data[at : at + 5].lower(), b"u%04x" % byte
        if byte in _ESCAPED and rest[:1] == bytes((byte,)):
            at += 1
        elif len(rest) < 5:
            return escape.startswith(rest)
        elif rest == escape:
            at += 5
        else:
            return False
    return False


def redactor(key: str | None, others: tuple[str, ...] = (), *, encoded: bool = True) -> Redactor | None:
    """For one response of a backend that was sent `key`, and perhaps other secrets; `None` without one that is worth
    it. `encoded`: they are found in base64, hexadecimal, URLs and the like, too, which takes a microsecond for each piece."""
    secrets = _secrets((key, *others), encoded)
    return None if secrets is None else Redactor(secrets)


def redacted(data: bytes, key: str | None) -> bytes:
    """The whole of a body without `key`."""
    redacting = redactor(key)
    return data if redacting is None else redacting.feed(data) + redacting.rest()


@lru_cache(maxsize=256)
def _secrets(given: tuple[str | None, ...], encoded: bool) -> _Secrets | None:
    """`None` if nothing in it is worth hiding."""
    found = {each.encode("latin-1", "replace") for each in given if each is not None and _is_secret(each)}
    if not found:
        return None
    keys = tuple(sorted(found, key=len, reverse=True))
    escaped = b"|".join(b"".join(map(_spellings, key)) for key in keys)
    forms = sorted({form for key in keys for form in encodings(key)}, key=len, reverse=True) if encoded else []
    last = frozenset(b"".join((*keys, *forms)) + rb"\u0123456789abcdefABCDEF")
    return _Secrets(keys, tuple(forms), re.compile(escaped), last)


def _is_secret(key: str) -> bool:
    return len(key) >= _MIN_LENGTH and key.lower() not in _PLACEHOLDERS


def _spellings(byte: int) -> bytes:
    """An expression for a character as it is, or escaped as in JSON."""
    plain = re.escape(bytes((byte,)))
    simple = rb"|\\{1,8}" + plain if byte in _ESCAPED else b""
    return rb"(?:%b|\\{1,8}u(?i:%04x)%b)" % (plain, byte, simple)
