"""The context checkpoints at the end of slot files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from fakes.slot_engine import checkpoint_appendix

from hostler.profiles.schema import ModelFacts
from hostler.supervisor.context_checkpoints import checkpoint_count, needs_checkpoints

THREE = checkpoint_appendix(3)


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b"", 0),
        (b"state", 0),
        (b"state" + THREE, 3),
        (b"state" + checkpoint_appendix(0), 0),
        (b"state" + THREE[:-1], 0),
        (b"state" + THREE + b"more", 0),
        (b"state" + THREE[: len(THREE) // 2], 0),
        (b"SCKP", 0),
        (b"state" + b"SCKP" + struct.pack("<II", 2, 0), 0),
        (b"state" + b"SCKP" + struct.pack("<II", 1, 4_000_000_000), 0),
        (b"state" + b"SCKP" + struct.pack("<IIqiiQ", 1, 1, 9, 0, 8, 2**63), 0),
        # The name of the appendix within a state, and within a checkpoint.
        (b"xxSCKP\x01\0\0\0xx" + THREE, 3),
        (b"state" + checkpoint_appendix(2, state=b"SCKP\x01\0\0\0\x01\0\0\0"), 2),
    ],
)
def test_complete_appendices_are_counted(tmp_path: Path, content: bytes, count: int) -> None:
    file = tmp_path / "slot"
    file.write_bytes(content)
    assert checkpoint_count(file) == count


@pytest.mark.parametrize(
    ("facts", "needed"),
    [(ModelFacts(), False), (ModelFacts(sliding_window=512), True), (ModelFacts(recurrent=True), True)],
)
def test_windows_and_recurrent_memories_need_checkpoints(facts: ModelFacts, needed: bool) -> None:
    assert needs_checkpoints(facts) is needed
