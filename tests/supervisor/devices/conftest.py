"""Fakes of vendors' tools, and trees of files like those of Linux's drivers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

FakeTool = Callable[[str, str], Path]
FakeFiles = Callable[[Mapping[str, str]], Path]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTool:
    """`tool(name, script)` puts a shell script of that name on an otherwise empty PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, script: str) -> Path:
        file = folder / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return file

    return make


@pytest.fixture
def files(tmp_path: Path) -> FakeFiles:
    """`files({path: content})` writes a tree and returns its root."""
    root = tmp_path / "root"
    root.mkdir()

    def make(contents: Mapping[str, str]) -> Path:
        for name, content in contents.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
        return root

    return make
