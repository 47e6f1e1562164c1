"""Completion of commands and models in the shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def completed(folder: Path, words: str) -> list[str]:
    """The completions that bash gets for the last word."""
    environ = {
        **os.environ,
        "HOSTLER_CONFIG": str(folder / "hostler.yaml"),
        "_HOSTLER_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    code = "import sys; sys.argv = ['hostler']; from hostler.gateway.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environ, cwd=folder, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("hostler sw", ["switch"]),
        ("hostler switch ", ["alpha", "first", "beta"]),
        ("hostler switch a", ["alpha"]),
        ("hostler unp", ["unpin"]),
        ("hostler pin b", ["beta"]),
        ("hostler pull alpha ", ["first", "beta"]),
        ("hostler logs f", ["first"]),
        ("hostler switch x", []),
    ],
)
def test_the_shell_completes_commands_and_models(tmp_path: Path, words: str, offered: list[str]) -> None:
    profiles = {"alpha": {"model": "/no.gguf", "aliases": ["first"]}, "beta": {"model": "/no.gguf"}}
    (tmp_path / "hostler.yaml").write_text(json.dumps({"profiles": profiles}))
    assert completed(tmp_path, words) == offered


def test_an_invalid_file_completes_nothing(tmp_path: Path) -> None:
    (tmp_path / "hostler.yaml").write_text("gateway: [")
    assert completed(tmp_path, "hostler switch a") == []
