"""Context checkpoints: copies of a state that cannot be cut back. Newer engines append them to the files of slots."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Final

from hostler.profiles.schema import ModelFacts

#: The arguments and variables that set how many an engine makes of a slot.
ARGUMENTS: Final = ("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints")
VARIABLES: Final = ("LLAMA_ARG_CTX_CHECKPOINTS", "LLAMA_ARG_SWA_CHECKPOINTS")

#: How many engines make by default. They take as much as 150 MB each, in memory and in saved slots; llama.cpp makes 32.
DEFAULT_COUNT: Final = 8

#: Starts the appendix: its name and its version, little-endian.
MAGIC: Final = b"SCKP\x01\x00\x00\x00"

_COUNT: Final = struct.Struct("<I")
#: Tokens up to the checkpoint, its first and its last position.
_POSITIONS: Final = struct.Struct("<qii")
_SIZE: Final = struct.Struct("<Q")
#: The states of model, draft model and speculation, each after its size.
_STATES: Final = 3
_MAX_CHECKPOINTS: Final = 1024


def needs_checkpoints(facts: ModelFacts) -> bool:
    """Whether the model's state cannot be cut back to an earlier token: with a recurrent memory or a sliding window."""
    return facts.recurrent or facts.sliding_window > 0


def checkpoint_count(file: Path) -> int:
    """How many context checkpoints the slot file ends with; 0 without a complete appendix. Blocks. Raises `OSError`."""
    with file.open("rb") as stream:
        if file.stat().st_size < len(MAGIC):
            return 0
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.rfind(MAGIC)
            # A state may contain the same bytes by chance: only an appendix reaches to the end of the file.
            while at >= 0:
                count = _parse(content, at + len(MAGIC))
                if count is not None:
                    return count
                at = content.rfind(MAGIC, 0, at)
    return 0


def _parse(content: mmap.mmap, at: int) -> int | None:
    """The number of checkpoints of an appendix that continues here and ends with the file; `None` if it is none."""
    end = len(content)
    try:
        (count,) = _COUNT.unpack_from(content, at)
        at += _COUNT.size
        if count > _MAX_CHECKPOINTS:
            return None
        for _ in range(count):
            _POSITIONS.unpack_from(content, at)
            at += _POSITIONS.size
            for _ in range(_STATES):
                (size,) = _SIZE.unpack_from(content, at)
                at += _SIZE.size + size
                if at > end:
                    return None
    except struct.error:
        return None
    return count if at == end else None
