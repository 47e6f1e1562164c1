"""What the folder of saved slots remembers of engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.supervisor.slot_files import SlotFiles


@pytest.fixture
def files(tmp_path: Path) -> SlotFiles:
    files = SlotFiles(tmp_path / "slots", max_bytes=1000, max_age_s=60)
    files.prepare(0.0)
    return files


def test_what_an_engine_saves_is_remembered_by_build_and_architecture(files: SlotFiles) -> None:
    files.set_saves_checkpoints("b1", "gemma3", False)
    files.prepare(1.0)
    assert files.saves_checkpoints("b1", "gemma3") is False
    assert files.saves_checkpoints("b1", "mamba2") is None
    assert files.saves_checkpoints("b2", "gemma3") is None


def test_an_engine_that_has_saved_checkpoints_can_do_so(files: SlotFiles) -> None:
    files.set_saves_checkpoints("b1", "gemma3", True)
    files.set_saves_checkpoints("b1", "gemma3", False)
    assert files.saves_checkpoints("b1", "gemma3") is True


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_note_counts_as_none(files: SlotFiles, damage: bytes) -> None:
    files.set_saves_checkpoints("b1", "gemma3", False)
    files.set_strikes("a" * 64, "alpha", 2)
    for note in files.directory.iterdir():
        note.write_bytes(damage)
    assert files.saves_checkpoints("b1", "gemma3") is None
    assert files.strikes("a" * 64) == 0
