"""Takes a slot back to the end of its last prompt: where the next request leaves it, if it drops the reasoning of the answer.

For engines that do not save the context checkpoints with which they could do so themselves after a restart.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.engine_client import EngineError, request_event, request_json

#: How a slot file begins: magic, version, number of tokens.
_HEAD: Final = struct.Struct("<4sII")
_MAGIC: Final = b"qsgg"

#: Newer engines write this in front of the tokens, then a version and their number; behind them are images and sounds.
_PACKED: Final = -1
_PACKED_VERSION: Final = 1

#: Engines make a checkpoint so many tokens before the end of a prompt. One token has to be read after it.
_READ: Final = 1


class _Completion(msgspec.Struct, frozen=True):
    prompt: Sequence[int]
    id_slot: int
    n_predict: int = 0
    cache_prompt: bool = True
    stream: bool = False
    return_progress: bool = False


class _Progress(msgspec.Struct, frozen=True):
    cache: int


class _Event(msgspec.Struct, frozen=True):
    prompt_progress: _Progress


class _Timings(msgspec.Struct, frozen=True):
    cache_n: int


class _Answer(msgspec.Struct, frozen=True):
    timings: _Timings


def read_tokens(file: Path) -> list[int]:
    """The tokens of a slot file; empty if they cannot be read, or some of them are not text. Blocks. Raises `OSError`."""
    with file.open("rb") as stream:
        head = stream.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return []
        magic, _, count = _HEAD.unpack(head)
        if magic != _MAGIC or 4 * count > file.stat().st_size - _HEAD.size:
            return []
        tokens = list(struct.unpack(f"<{count}i", stream.read(4 * count)))
    if tokens[:1] == [_PACKED]:
        version, count = (*tokens[1:3], 0, 0)[:2]
        packed, others = tokens[3 : 3 + count], tokens[3 + count :]
        tokens = packed if version == _PACKED_VERSION and len(packed) == count and not any(others) else []
    return [] if any(token < 0 for token in tokens) else tokens


async def rewind(address: EngineAddress, slot: int, tokens: Sequence[int], *, timeout_s: float) -> int:
    """Take an idle slot with these tokens back to its last checkpoint, if that keeps the greater part of them.

    Returns how many tokens it has then; 0 if it keeps less. Raises `EngineError` if the engine does not do it, or has no
    checkpoint. In both cases the slot may have lost its state.
    """
    # Asked for what it has, but the last token, the engine goes back to the checkpoint and begins to read on from there.
    asked = _Completion(tokens[:-1], slot, stream=True, return_progress=True)
    event = await request_event(address, "POST", "/completion", body=asked, timeout_s=timeout_s)
    try:
        kept = msgspec.json.decode(event, type=_Event).prompt_progress.cache
    except msgspec.DecodeError as error:
        raise EngineError(f"POST /completion: {error}", 200) from None
    if not kept:
        raise EngineError("the slot has no checkpoint", 200)
    if 2 * kept < len(tokens) or kept + _READ >= len(tokens):
        return 0
    asked = _Completion(tokens[: kept + _READ], slot)
    answer = await request_json(address, "POST", "/completion", _Answer, body=asked, timeout_s=timeout_s)
    if answer.timings.cache_n != kept:
        raise EngineError(f"the slot went back to {answer.timings.cache_n} tokens instead of {kept}", 200)
    return kept + _READ
