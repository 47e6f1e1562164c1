"""The `context` of `/api/generate`: a conversation packed into numbers, which clients take for tokens and send back."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

from hostler.adapters.json_body import NOT_JSON

# "HOS": larger than any vocabulary, so that tokens of a real Ollama are never mistaken for a packed conversation.
_MARK = 0x484F53
_BYTES_PER_NUMBER = 3
_MAX_BYTES = 16 * 1024 * 1024

# Roles and texts.
_Messages = list[tuple[str, str]]


def pack_context(messages: Sequence[tuple[str, str]]) -> list[int]:
    """The numbers that stand for these roles and texts."""
    data = zlib.compress(msgspec.json.encode(messages), 6)
    padded = data + bytes(-len(data) % _BYTES_PER_NUMBER)
    numbers = (int.from_bytes(padded[at : at + _BYTES_PER_NUMBER]) for at in range(0, len(padded), _BYTES_PER_NUMBER))
    return [_MARK, len(data), *numbers]


def is_packed(context: Sequence[object]) -> bool:
    """Whether these numbers were made by `pack_context`."""
    return len(context) >= 2 and context[0] == _MARK


def unpack_context(context: Sequence[object]) -> _Messages:
    """The roles and texts that these numbers stand for; empty if they come from elsewhere."""
    if not is_packed(context):
        return []
    length, numbers = context[1], context[2:]
    if not isinstance(length, int) or not 0 <= length <= len(numbers) * _BYTES_PER_NUMBER:
        return []
    if not all(isinstance(number, int) and 0 <= number < 1 << 8 * _BYTES_PER_NUMBER for number in numbers):
        return []
    data = b"".join(number.to_bytes(_BYTES_PER_NUMBER) for number in numbers if isinstance(number, int))[:length]
    try:
        reader = zlib.decompressobj()
        text = reader.decompress(data, _MAX_BYTES)
        return msgspec.json.decode(text, type=_Messages) if reader.eof else []
    except (zlib.error, *NOT_JSON):
        return []
