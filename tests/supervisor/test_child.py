"""A child process and its group: how it is launched, and what is left when it exits."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hostler.supervisor.child import Child

pytestmark = pytest.mark.anyio


async def ended(*arguments: str, **environment: str) -> tuple[int | None, list[str]]:
    """Its exit code and what it wrote."""
    lines: list[str] = []
    child = Child.start(arguments, {**os.environ, **environment}, lambda _, line: lines.append(line))
    await child.exited.wait()
    await child.end(0)
    return child.returncode, lines


@pytest.mark.parametrize("path", [os.environ["PATH"], "/nowhere"])
async def test_gets_its_arguments_and_environment_as_they_are(path: str) -> None:
    program = "import os, sys; print(sys.argv[1:], os.environ['ODD'], os.getppid(), os.getpgid(0) == os.getpid())"
    code, lines = await ended(
        sys.executable, "-I", "-S", "-c", program, "a b", "$HOME", "'\"", "", ODD="x y'", PATH=path
    )
    assert (code, lines) == (0, [f"""{["a b", "$HOME", "'" + '"', ""]!r} x y' {os.getpid()} True"""])


async def test_a_program_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(FileNotFoundError):
        await ended("/nowhere/engine")


@pytest.mark.parametrize(
    ("content", "mode", "error"),
    [
        (b"\x7fELF" + bytes(60), 0o755, OSError),
        (b"MZ" + bytes(60), 0o755, OSError),
        (b"#!/bin/sh\n", 0o644, PermissionError),
    ],
)
async def test_a_program_of_another_machine_or_without_permission_is_an_error_at_once(
    tmp_path: Path, content: bytes, mode: int, error: type[OSError]
) -> None:
    program = tmp_path / "engine"
    program.write_bytes(content)
    program.chmod(mode)
    with pytest.raises(error):
        await ended(str(program))


async def test_a_script_without_its_interpreter_ends_with_a_line_that_says_so(tmp_path: Path) -> None:
    program = tmp_path / "engine"
    program.write_text("#!/nowhere/python\n")
    program.chmod(0o755)
    try:
        code, lines = await ended(str(program))
    except OSError:
        return  # launched without the shell
    assert code in (126, 127)
    assert lines[0].startswith("hostler: ")
