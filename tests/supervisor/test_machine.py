"""The memory that is free on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.supervisor.machine import available_memory

MIB = 1024**2


@pytest.mark.parametrize(
    ("limit", "usage"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_the_limit_of_a_container_counts(tmp_path: Path, limit: str, usage: str) -> None:
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text(f"{64 * MIB}\n")
    (tmp_path / usage).write_text(f"{24 * MIB}\n")
    assert available_memory(tmp_path) == 40 * MIB
    (tmp_path / usage).write_text(f"{65 * MIB}\n")
    assert available_memory(tmp_path) == 0


def test_without_a_limit_the_machine_s_memory_is_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) > MIB
