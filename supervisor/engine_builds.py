"""The llama-servers that were installed side by side in a folder: each in a folder of its own, none ever replaced."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
import msgspec

from hostler.profiles.file_reading import real_path
from hostler.supervisor.contract import Failure, SupervisorError
from hostler.supervisor.engine_archive import ArchiveError, unpack
from hostler.supervisor.engine_staging import staging_folder
from hostler.supervisor.llama_program import LlamaProgram, read_program

_PROGRAM: Final = "llama-server.exe" if sys.platform == "win32" else "llama-server"
#: The program stands at most so many folders below the one that was given: `build/bin` of a source tree is two.
_DEPTH: Final = 4
_ENDINGS: Final = re.compile(r"(\.(tar\.(gz|xz|bz2|zst)|tgz|txz|tar|zip|whl))$", re.IGNORECASE)
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._+-]+")


class EngineBuild(msgspec.Struct, frozen=True, kw_only=True):
    """An installed llama-server. `read`: what it said of itself when it was installed."""

    name: str
    program: Path
    read: LlamaProgram = LlamaProgram()


def installed_builds(folder: Path) -> list[EngineBuild]:
    """The builds in a folder, by name. Empty if there is none."""
    try:
        names = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError:
        return []
    programs = ((name, find_program(folder / name)) for name in names)
    return [EngineBuild(name=name, program=program) for name, program in programs if program is not None]


def find_program(folder: Path) -> Path | None:
    """The llama-server in a folder or below it, the one that is nearest to it; `None` if there is none."""
    level = [folder]
    for _ in range(_DEPTH):
        below: list[Path] = []
        for place in level:
            if (program := place / _PROGRAM).is_file():
                return program
            with contextlib.suppress(OSError):
                below += sorted(each for each in place.iterdir() if each.is_dir() and not each.is_symlink())
        level = below
    return None


def install_build(
    source: Path, folder: Path, *, beside: Sequence[Path] = (), name: str | None = None, arguments: Sequence[str] = ()
) -> EngineBuild:
    """Install the llama-server in an archive or a folder, which stay as they are. Blocks.

    What is in `beside`, such as CUDA's libraries, is put into the program's folder.

    It has to run with these arguments before it gets its place beside the others. Raises `SupervisorError` if it does not,
    or if a build has its name, and `OSError`; then nothing was changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name is not None or source.is_file():
        check_name(folder, archive_name(source.name) if name is None else name)
    with staging_folder(folder) as temporary:
        fresh = temporary / "build"
        _copy(source, fresh)
        program = find_program(fresh)
        if program is None:
            raise _failed(f"{source}: there is no {_PROGRAM} in it")
        if not os.access(program, os.X_OK):
            program.chmod(0o755)  # zip archives from Windows do not say what can be run
        for index, each in enumerate(beside):
            extra = temporary / str(index)
            _copy(each, extra)
            _move_files(extra, program.parent)
        read = check_program((str(program), *arguments))
        name = name or _name_of(source, read)
        target = check_name(folder, name)
        fresh.rename(target)
    return EngineBuild(name=name, program=target / program.relative_to(fresh), read=read)


def check_program(program: tuple[str, ...]) -> LlamaProgram:
    """What a llama-server says of itself. Raises `SupervisorError` if it does not run. Blocks."""
    read = anyio.run(read_program, program, os.environ)
    if read.failure:
        raise _failed(f"{program[0]} does not run: {read.failure}")
    return read


def _copy(source: Path, fresh: Path) -> None:
    try:
        if source.is_dir():
            if real_path(fresh).is_relative_to(real_path(source)):
                raise _failed(f"{source} contains the folder of installed engines; choose another one with --folder")
            shutil.copytree(source, fresh, symlinks=True)
        else:
            fresh.mkdir()
            unpack(source, fresh)
    except ArchiveError as error:
        raise _failed(str(error)) from None
    except shutil.Error as error:
        _, _, reason = error.args[0][0]
        raise _failed(f"{source} cannot be copied: {reason}") from None
    fresh.chmod(0o755)  # engines may run as another user


def _move_files(extra: Path, target: Path) -> None:
    """Move all files below a folder into another one, without their folders. Those that are there already stay."""
    for path in sorted(extra.rglob("*")):
        place = target / path.name
        if (path.is_symlink() or path.is_file()) and not (place.exists() or place.is_symlink()):
            path.rename(place)


def check_name(folder: Path, name: str) -> Path:
    """The folder of a new build. Raises `SupervisorError` for a name that is none, or is taken."""
    if _NOT_IN_NAMES.search(name) or name.startswith((".", "-")) or not name:
        raise _failed(f"{name!r} cannot be a name; use letters, digits, dots and hyphens")
    if (folder / name).exists():
        raise _failed(f"{name} is installed already: `hostler engine use {name}` uses it; --name gives another name")
    return folder / name


def _name_of(source: Path, read: LlamaProgram) -> str:
    """A name for a build: that of its archive, which usually says for which devices it is; that of a folder says less."""
    number = read.build.partition(" ")[0]
    build = f"b{number}" if number.isdecimal() else number
    return archive_name((build or source.name) if source.is_dir() else source.name)


def archive_name(file: str) -> str:
    """The name of the build in an archive with this name."""
    return _NOT_IN_NAMES.sub("-", _ENDINGS.sub("", file)).lstrip(".-") or "llama-server"


def _failed(message: str) -> SupervisorError:
    return SupervisorError(Failure(kind="engine_missing", message=message))
