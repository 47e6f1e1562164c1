"""The library: the file of the models that clients created, as presets and profiles. Comments in it survive.

Authorisation happens elsewhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hostler.profiles.file_reading import real_path
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.store import escape_dollars, read_text, replace_text
from hostler.profiles.yaml_config import Document, DocumentError, parse

MAX_MODELS = 1000

_HEADER = """\
# Models that clients created (`ollama cp`, `ollama create`). Hostler writes this file; your own changes take effect
# while it runs, and comments stay.
"""


class Library(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The models that clients created, by name. A model may be both: a profile of its own, and a preset on top of it."""

    presets: Mapping[str, Preset] = {}
    profiles: Mapping[str, ProfileEntry] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.presets or name in self.profiles


def read_library(path: Path, read: Callable[[Path], str | None] | None = None) -> tuple[Library, Document | None]:
    """The file's content, and the document for error messages; empty if there is no file. Raises `DocumentError`.

    `read` returns the file's text, `None` if there is no file.
    """
    text = (read or optional_text)(path)
    if text is None:
        return Library(), None
    document = parse(text, str(path), env={})
    return document.to(Library), document


def optional_text(path: Path) -> str | None:
    """The file's text, `None` if there is no file. Raises `DocumentError` if it cannot be read."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # reading says why
    return read_text(path)


def save_model(path: Path, name: str, *, preset: Preset | None, profile: ProfileEntry | None) -> None:
    """Save a model atomically, replacing any of the same name. Blocks. Raises `DocumentError`."""
    library, _ = read_library(path)
    if name not in library and len({*library.presets, *library.profiles}) >= MAX_MODELS:
        raise DocumentError(str(path), None, "", f"already holds {MAX_MODELS} models; delete some first")
    _change(path, name, {"presets": preset, "profiles": profile})


def delete_model(path: Path, name: str) -> None:
    """Does nothing if there is no such model. Blocks. Raises `DocumentError`."""
    _change(path, name, {"presets": None, "profiles": None})


def _change(path: Path, name: str, entries: Mapping[str, msgspec.Struct | None]) -> None:
    from ruamel.yaml import YAML

    path = real_path(path)
    old = read_text(path) if path.exists() else ""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    root: Any = yaml.load(old or _HEADER + "presets: {}\n") or {}
    for section, entry in entries.items():
        models = root.get(section)
        if entry is None:
            if models and name in models:
                del models[name]
                if not models:
                    root[section] = {}
            continue
        if not models:
            # Replaces `{}`: long texts are unreadable in flow style.
            models = root[section] = yaml.map()
        models[name] = _as_written(entry)
    stream = io.StringIO()
    yaml.dump(root, stream)
    new = stream.getvalue()
    after = parse(new, str(path), env={}).to(Library)
    for section, entry in entries.items():
        if getattr(after, section).get(name) != entry:
            raise DocumentError(str(path), None, f"{section}.{name}", "could not be written to this file")
    replace_text(path, old, new, mode=0o600)


def _as_written(entry: msgspec.Struct) -> Any:
    """As it is written to the file: without defaults, with dollar signs and control characters escaped."""
    whole = msgspec.json.decode(msgspec.json.encode(entry, enc_hook=int))
    if isinstance(entry, Preset):
        empty = msgspec.to_builtins(Preset(model=""))
        whole = {key: value for key, value in whole.items() if value not in (empty.get(key), [])}
    return _quote_control_characters(escape_dollars(whole))


def _quote_control_characters(value: Any) -> Any:
    """With quotes around strings that YAML would not read back as they are: it takes every kind of line break for one."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    match value:
        case str():
            return value if value.replace("\n", "").isprintable() else DoubleQuotedScalarString(value)
        case list():
            return [_quote_control_characters(item) for item in value]
        case dict():
            return {key: _quote_control_characters(item) for key, item in value.items()}
    return value
