"""The `context` of generate: a conversation as a list of numbers that clients keep and send back without looking inside.

In Ollama they are tokens. An adapter has no tokenizer, so the conversation itself is packed into them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

from hostler.adapters.document import NOT_JSON

_MARK = 0x484F53  # "HOS": no model has so large a vocabulary, so tokens of a real Ollama are never taken for ours.
_STEP = 3
_MAX_BYTES = 16 * 1024 * 1024

_Turns = list[tuple[str, str]]


def pack(turns: Sequence[tuple[str, str]]) -> list[int]:
    """The numbers that stand for these turns, each a role and its text."""
    squeezed = zlib.compress(msgspec.json.encode(turns), 6)
    padded = squeezed + bytes(-len(squeezed) % _STEP)
    return [_MARK, len(squeezed), *(int.from_bytes(padded[at : at + _STEP]) for at in range(0, len(padded), _STEP))]


def packed(context: Sequence[object]) -> bool:
    """Whether these numbers were made by `pack`."""
    return len(context) >= 2 and context[0] == _MARK


def unpack(context: Sequence[object]) -> _Turns:
    """The turns that these numbers stand for; none if they come from elsewhere."""
    if not packed(context):
        return []
    length, numbers = context[1], context[2:]
    if not isinstance(length, int) or not 0 <= length <= len(numbers) * _STEP:
        return []
    if not all(isinstance(number, int) and 0 <= number < 1 << 8 * _STEP for number in numbers):
        return []
    squeezed = b"".join(number.to_bytes(_STEP) for number in numbers if isinstance(number, int))[:length]
    try:
        reader = zlib.decompressobj()
        text = reader.decompress(squeezed, _MAX_BYTES)
        return msgspec.json.decode(text, type=_Turns) if reader.eof else []
    except (zlib.error, *NOT_JSON):
        return []
