"""`hostler import`: a configuration file from that of another server, with a report of every key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from hostler.gateway.cli.options import JsonOption, cannot_write, echo, fail, print_json
from hostler.gateway.cli.start_options import FAILED, USAGE
from hostler.profiles.file_reading import expanded_path, home_path, real_path

if TYPE_CHECKING:
    from hostler.gateway.importing.report import Imported, Note
    from hostler.profiles.schema import ModelFacts

#: Bytes of a configuration file that is read, at most.
_MAX_BYTES: Final = 4 * 1024 * 1024

_TITLES: Final = {
    "taken": "taken over",
    "changed": "changed",
    "missing": "not taken over",
    "meaningless": "without a meaning here",
}


class ImportKind(StrEnum):
    """The servers whose configuration can be imported."""

    ollama = "ollama"
    llama_swap = "llama-swap"
    lmstudio = "lmstudio"
    llama_server = "llama-server"
    litellm = "litellm"


#: Lines by which a configuration file is recognized.
_SIGNS: Final = {
    ImportKind.litellm: r"^(model_list|litellm_settings|router_settings|general_settings)\s*:",
    ImportKind.llama_swap: r"^(models|macros|groups|matrix|peers|healthCheckTimeout)\s*:",
    ImportKind.llama_server: r"^\[[^\]\n]+\]\s*$",
}


def import_configuration(
    kind: Annotated[ImportKind, typer.Argument(metavar="KIND", help=f"One of {', '.join(ImportKind)}.")],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|DIR]",
            help="Its configuration file, or its folder of models. Default: the usual folder of ollama and lmstudio.",
        ),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="File to write.")] = "hostler.yaml",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the result, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a configuration file from that of another server.

    Shows what was taken over, what was changed and what was not taken over, with line numbers. The source stays as it is,
    and models are used where they are.
    """
    from hostler.gateway.importing.report import ImportFailed
    from hostler.profiles.profile_edits import sections_text

    target = Path(output)
    try:
        where = _source_path(kind, source)
        imported = _IMPORTS[kind](where, target)
    except ImportFailed as error:
        fail(str(error), FAILED)
    except OSError as error:  # a folder that another user owns
        fail(f"{error.filename or source}: cannot be read: {error.strerror or error}", FAILED)
    if not imported.sections:
        if as_json:
            print_json(_as_plain(imported, [], ""))
        else:
            _print_notes(imported.notes)
        fail(f"{where}: nothing is taken over, and nothing written{_better_kind(kind, where)}", FAILED)
    text = sections_text(imported.sections)
    files = {target: (text, _mode(where))}
    files |= {target.parent / name: (content, 0o600) for name, content in imported.secret_files.items()}
    if not dry_run:
        _write(files, where, replace=force)
    if as_json:
        print_json(_as_plain(imported, [] if dry_run else [str(path) for path in files], text))
        return
    _print_notes(imported.notes)
    if dry_run:
        echo(f"\n{target} would be:\n")
        echo(text.rstrip("\n"))
        return
    for path, (_, mode) in files.items():
        echo(f"wrote {path}" + ("" if mode == 0o644 else ", which only you may read"))
    echo(f"check it with: hostler check {target}")


def _better_kind(kind: ImportKind, source: Path) -> str:
    """The kind whose keys the file has, if it is another one."""
    if source.is_dir():
        return ""
    text = _text(source)
    found = [each for each, sign in _SIGNS.items() if re.search(sign, text, re.MULTILINE)]
    if not found or kind in found:
        return ""
    return f"; it looks like a file of {found[0]}: hostler import {found[0]} {source}"


def _as_plain(imported: Imported, written: list[str], text: str) -> dict[str, object]:
    return {
        **{
            kind: [
                {"file": note.file, "line": note.line, "key": note.key, "text": note.text}
                for note in imported.notes
                if note.kind == kind
            ]
            for kind in _TITLES
        },
        "written": written,
        "configuration": text,
    }


def _print_notes(notes: tuple[Note, ...]) -> None:
    for kind, title in _TITLES.items():
        found = [note for note in notes if note.kind == kind]
        echo(f"{title}: {len(found)}")
        for note in found:
            echo("  " + "?".join(str(note).splitlines()))  # a name may have line breaks


def _write(files: Mapping[Path, tuple[str, int]], source: Path, *, replace: bool) -> None:
    """Write all files, or none if one of them is in the way."""
    from hostler.profiles.store import read_text, replace_text
    from hostler.profiles.yaml_config import DocumentError

    for path in files:
        if _is_source(path, source):
            fail(f"{path} is part of the source, which is never changed; use another --output", USAGE)
        if path.is_dir():
            fail(f"{path} is a folder; name a file with --output", USAGE)
        if path.is_symlink():
            fail(f"{path} is a link; use another --output", USAGE)
        if path.exists() and not replace:
            fail(f"{path} exists already; use another --output, or --force to replace it", USAGE)
    for path, (text, mode) in files.items():
        try:
            if mode != 0o644 and path.exists():
                path.chmod(mode)
            replace_text(path, read_text(path) if path.exists() else "", text, mode=mode)
        except DocumentError as error:
            fail(str(error), FAILED)
        except OSError as error:
            cannot_write(path, error)


def _mode(source: Path) -> int:
    """The permissions of the result: a file that others may not read can have secrets in commands and variables."""
    return 0o600 if source.is_file() and not source.stat().st_mode & 0o004 else 0o644


def _is_source(path: Path, source: Path) -> bool:
    resolved, origin = real_path(path), real_path(source)
    return resolved == origin or (origin.is_dir() and origin in resolved.parents)


def _source_path(kind: ImportKind, given: str | None) -> Path:
    from hostler.gateway.importing.report import ImportFailed

    wants_folder = kind in (ImportKind.ollama, ImportKind.lmstudio)
    if given is None and not wants_folder:
        raise ImportFailed(f"name the configuration file: hostler import {kind} FILE")
    try:
        path = expanded_path(given or _usual_folder(kind))
    except ValueError as error:
        raise ImportFailed(f"{given}: {error}") from None
    if wants_folder and not path.is_dir():
        what = "is not a folder" if path.exists() else "there is no such folder"
        raise ImportFailed(f"{path}: {what}; name it: hostler import {kind} DIR")
    if not wants_folder and not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "there is no such file"
        raise ImportFailed(f"{path}: {what}; name the configuration file: hostler import {kind} FILE")
    return path


def _usual_folder(kind: ImportKind) -> str:
    if kind == ImportKind.ollama:
        service = Path("/usr/share/ollama/.ollama/models")
        user = home_path("~/.ollama/models")
        if named := os.environ.get("OLLAMA_MODELS"):
            return named
        # The service's own last: other users may not enter its home.
        return str(user if user.is_dir() or not service.is_dir() else service)
    return str(home_path("~/.lmstudio"))


def _text(path: Path) -> str:
    from hostler.gateway.importing.report import ImportFailed
    from hostler.profiles.file_reading import FileTooLarge, read_limited

    try:
        return read_limited(path, _MAX_BYTES).decode("utf-8-sig")
    except (OSError, FileTooLarge) as error:
        raise ImportFailed(f"{path}: cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise ImportFailed(f"{path}: byte {error.start} is not UTF-8: save the file as text in UTF-8") from None


def _facts_of(model: str) -> ModelFacts | None:
    from hostler.profiles.gguf import read_facts
    from hostler.profiles.gguf_header import GGUFError

    try:
        return read_facts(Path(model)) if Path(model).is_file() else None
    except (GGUFError, OSError, ValueError):
        return None


def _path_of(source: Path) -> Callable[[str], str]:
    """Whole paths: relative ones start at the folder of the source."""
    folder = real_path(source).parent

    def whole(text: str) -> str:
        if "\0" in text:  # a variable, whose value is not known
            return text
        return str(folder / home_path(text)) if text.startswith("~/") else os.path.normpath(folder / text)

    return whole


def _import_llama_swap(source: Path, target: Path) -> Imported:
    from hostler.gateway.importing.llama_swap import import_llama_swap

    return import_llama_swap(
        _text(source), str(source), prefix=target.stem, path_of=_path_of(source), facts_of=_facts_of
    )


def _import_llama_server(source: Path, target: Path) -> Imported:
    from hostler.gateway.importing.llama_server import import_llama_server

    return import_llama_server(
        _text(source), str(source), prefix=target.stem, path_of=_path_of(source), facts_of=_facts_of
    )


def _import_litellm(source: Path, target: Path) -> Imported:
    from hostler.gateway.importing.litellm import import_litellm

    return import_litellm(_text(source), str(source), prefix=target.stem)


def _import_ollama(source: Path, target: Path) -> Imported:
    from hostler.gateway.importing.ollama import import_ollama

    return import_ollama(real_path(source), facts_of=_facts_of)


def _import_lmstudio(source: Path, target: Path) -> Imported:
    from hostler.gateway.importing.lmstudio import import_lmstudio

    return import_lmstudio(real_path(source))


_IMPORTS: Final[Mapping[ImportKind, Callable[[Path, Path], Imported]]] = {
    ImportKind.ollama: _import_ollama,
    ImportKind.llama_swap: _import_llama_swap,
    ImportKind.lmstudio: _import_lmstudio,
    ImportKind.llama_server: _import_llama_server,
    ImportKind.litellm: _import_litellm,
}
