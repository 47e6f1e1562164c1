"""The last good state of the configuration, kept in a file beside it, and used while the configuration has mistakes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from hostler.gateway.checked_config import FindMistakes, read_checked
from hostler.gateway.config import FILE_VARIABLE, ConfigError, Configuration, FileErrors, find_file, read
from hostler.gateway.state_files import service_directory, user_directory
from hostler.profiles.file_reading import expanded_path
from hostler.profiles.store import FindModels
from hostler.supervisor.state_store import JsonStore

#: Files and their contents, `None` for one that does not exist.
Texts = Mapping[Path, str | None]


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    saved_at: float
    texts: dict[str, str | None]


def find_configuration(given: str | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """As `find_file`, and also a named file that is missing now, if its last good state is kept."""
    try:
        return find_file(given, environ)
    except ConfigError:
        try:
            path = expanded_path(given or environ[FILE_VARIABLE])
        except ValueError:
            path = None
        if path is None or kept_texts(path, environ) is None:
            raise
        return path


def load(
    path: Path | None,
    environ: Mapping[str, str] = os.environ,
    *,
    find_mistakes: FindMistakes = lambda _: (),
    find_models: FindModels | None = None,
    kept: Texts | None = None,
) -> Configuration:
    """The configuration at `path`, else its last good state, with the mistakes in `errors`.

    `find_models` finds those of the folders that it names. `kept` is that state, else it is read from its file. Raises
    `ConfigError` if there is none, or if it has mistakes, too. Blocks.
    """
    try:
        found = read_checked(path, environ, find_mistakes, find_models)
    except ConfigError as error:
        mistakes = error.mistakes
    else:
        if path is None or not _is_empty(found.texts, path):
            return found
        kept = kept or kept_texts(path, environ)
        if kept is None or _is_empty(kept, path):
            return found
        mistakes = (f"{path}: is empty, but was not before; write a comment into it if that is meant",)
    earlier = None
    if path is not None:
        earlier = _earlier(path, environ, kept or kept_texts(path, environ), find_mistakes, find_models)
    if earlier is None:
        raise ConfigError(*mistakes)
    return msgspec.structs.replace(
        earlier, errors=FileErrors(file=str(path), mistakes=mistakes, since=round(time.time(), 3))
    )


def _is_empty(texts: Texts, path: Path) -> bool:
    """Whether a file has nothing but white space, as one does whose writing was interrupted."""
    return not (texts.get(path.absolute()) or "").strip("\0\ufeff \t\r\n")


def _earlier(
    path: Path,
    environ: Mapping[str, str],
    kept: Texts | None,
    find_mistakes: FindMistakes,
    find_models: FindModels | None,
) -> Configuration | None:
    """The last good state, with the models that clients have created and members of the cluster have shared since then,
    unless their files are what is broken."""
    if kept is None:
        return None
    found = _read_texts(path, environ, kept, find_models)
    if found is not None and found.library is not None:
        fresh = {found.library.absolute(), found.shared.file}
        others = {place: kept[place] for place in kept if place not in fresh}
        found = _read_texts(path, environ, others, find_models) or found
    return None if found is None or find_mistakes(found) else found


def _read_texts(
    path: Path, environ: Mapping[str, str], texts: Texts, find_models: FindModels | None
) -> Configuration | None:
    try:
        return read(path, environ, texts=texts, find_models=find_models)
    except ConfigError:
        return None


def keep(configuration: Configuration, environ: Mapping[str, str] = os.environ) -> None:
    """Keep this state, unless it is kept already. A failure is logged. Blocks."""
    if configuration.path is None or configuration.errors is not None:
        return
    if kept_texts(configuration.path, environ) == configuration.texts:
        return
    texts = {str(place): text for place, text in configuration.texts.items()}
    places = _places(configuration.path, environ)
    place = next((each for each in places if os.access(each.parent, os.W_OK)), places[-1])
    _store(place).write(lambda: _Kept(saved_at=time.time(), texts=texts))


def kept_texts(path: Path, environ: Mapping[str, str] = os.environ) -> dict[Path, str | None] | None:
    """The last good state of the file at `path` and of those that belong to it. Blocks."""
    found = [kept for place in _places(path, environ) if (kept := _store(place).read()) is not None]
    found = [kept for kept in found if str(path.absolute()) in kept.texts]
    if not found:
        return None
    latest = max(found, key=lambda kept: kept.saved_at)
    return {Path(place): text for place, text in latest.texts.items()}


def _store(place: Path) -> JsonStore[_Kept]:
    return JsonStore(place, _Kept, contents="the last good configuration")


def _places(path: Path, environ: Mapping[str, str]) -> list[Path]:
    """Where it is kept: in systemd's state directory or beside the file, else in the user's state directory."""
    name = f"{path.stem}.last-good.json"
    if (directory := service_directory(environ)) is not None:
        return [directory / name]
    beside = path.absolute().with_name(name)
    digest = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:12]
    try:
        return [beside, user_directory(environ) / f"{digest}.{name}"]
    except RuntimeError:
        return [beside]
