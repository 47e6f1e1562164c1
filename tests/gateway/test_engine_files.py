"""Files that engines are started with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hostler.gateway.engine_files import argument_mistake, program_mistake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good").write_bytes(b"GGUF and more")
    (tmp_path / "random").write_bytes(bytes(range(256)))
    (tmp_path / "script").write_text("#!/bin/sh\n")
    (tmp_path / "text").write_text("llama-server --port 1\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file", "mistake"),
    [
        ("--mmproj", "good", None), ("--mmproj", "random", "is not a GGUF file"), ("--lora", "folder", "is a folder"),
        ("-md", "text", "is not a GGUF file"), ("-md", "none", "cannot be read"), ("--grammar-file", "text", None),
        ("--mmproj", "pipe", "is not a regular file"), ("--chat-template-file", "/dev/zero", "is not a regular file"),
        ("--grammar-file", "folder", "is a folder"), ("--lora", "a\0b", "cannot be read"), ("--alias", "none", None),
    ],
)  # fmt: skip
def test_files_of_arguments(folder: Path, name: str, file: str, mistake: str | None) -> None:
    assert argument_mistake(name, str(folder / file)) == mistake


def test_a_text_is_a_program_only_if_it_names_its_interpreter(folder: Path) -> None:
    assert program_mistake(str(folder / "text")) is not None
    for program in (folder / "script", folder / "none", sys.executable):
        assert program_mistake(str(program)) is None


@pytest.mark.parametrize("program", ["pipe", "/dev/zero"])
def test_pipes_and_devices_are_no_programs(folder: Path, program: str) -> None:
    assert program_mistake(str(folder / program)) == f"{folder / program} is not a regular file"
