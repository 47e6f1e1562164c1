"""The settings that name files: what is wrong with their paths, and where relative ones start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hostler.profiles.file_reading import expanded_path
from hostler.profiles.yaml_config import KeyPath

_S = TypeVar("_S", bound=msgspec.Struct)

#: The settings of a backend that name a file.
BACKEND_FILES = ("token_file", "certificate", "api_key_file", "ca_file", "client_cert_file", "client_key_file")

_FILES: tuple[KeyPath, ...] = (
    ("gateway", "tls", "cert"),
    ("gateway", "tls", "key"),
    ("gateway", "api_keys_file"),
    ("gateway", "key_usage_file"),
    ("gateway", "spending", "file"),
    ("gateway", "recording", "file"),
    ("gateway", "responses", "file"),
    ("cluster", "token_file"),
    ("supervisor", "tls", "cert"),
    ("supervisor", "tls", "key"),
    ("supervisor", "token_file"),
    ("supervisor", "slots_dir"),
)
#: Files whose readers know where they start.
_OTHER_FILES: tuple[KeyPath, ...] = (("manifest",), ("gateway", "library", "file"))


def path_mistakes(settings: msgspec.Struct) -> Iterator[tuple[KeyPath, str]]:
    """The keys of paths in `Settings` that cannot name a file, and why."""
    for key in (*_OTHER_FILES, *_files(settings)):
        try:
            expanded_path(_value(settings, key) or "")
        except ValueError as error:
            yield key, str(error)


def with_absolute_paths(settings: _S, folder: Path) -> _S:
    """The `Settings` with files and folders that start at `folder`, where the configuration file is."""
    for key in _files(settings):
        if (path := _value(settings, key)) is not None:
            settings = _replaced(settings, key, str(folder / expanded_path(path)))
    return settings


def _files(settings: Any) -> Iterator[KeyPath]:
    yield from _FILES
    for name in settings.backends:
        for key in BACKEND_FILES:
            yield "backends", name, key


def _value(settings: Any, key: KeyPath) -> str | None:
    for step in key:
        if settings is None:
            return None
        settings = settings[step] if isinstance(settings, Mapping) else getattr(settings, str(step))
    return settings if isinstance(settings, str) else None


def _replaced(settings: Any, key: KeyPath, new: str) -> Any:
    if not key:
        return new
    step, rest = str(key[0]), key[1:]
    if isinstance(settings, Mapping):
        return {**settings, step: _replaced(settings[step], rest, new)}
    return msgspec.structs.replace(settings, **{step: _replaced(getattr(settings, step), rest, new)})
