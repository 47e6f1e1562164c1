"""The file in which clients' own models are kept: presets, and profiles that were derived or uploaded. Comments survive.

Who may change it is decided elsewhere.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from hostler.profiles.presets import Preset
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.store import escaped, read_text, replace_text
from hostler.profiles.yaml_config import Document, DocumentError, parse

#: More of them are nobody's own models.
MAX_MODELS = 1000

_HEAD = """\
# Models that clients made (`ollama cp`, `ollama create`). Hostler writes this file; what you change in it yourself is
# taken over while it runs, and comments stay.
"""


class Library(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What clients made, by name. A model may be both: a profile of its own, and what is said in front of it."""

    presets: Mapping[str, Preset] = {}
    profiles: Mapping[str, ProfileEntry] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.presets or name in self.profiles


def read_library(path: Path) -> tuple[Library, Document | None]:
    """What is in the file, with the document for complaints; nothing if there is no file. Raises `DocumentError`."""
    if not path.exists():
        return Library(), None
    document = parse(read_text(path), str(path), env={})
    return document.to(Library), document


def put(path: Path, name: str, *, preset: Preset | None, profile: ProfileEntry | None) -> None:
    """Keep a model under this name, instead of what was kept there. Either all of it or nothing; blocks.

    Raises `DocumentError`.
    """
    library, _ = read_library(path)
    if name not in library and len({*library.presets, *library.profiles}) >= MAX_MODELS:
        raise DocumentError(str(path), None, "", f"holds {MAX_MODELS} models already: delete some")
    _change(path, name, {"presets": preset, "profiles": profile})


def drop(path: Path, name: str) -> None:
    """Forget the model of this name. Raises `DocumentError`; blocks."""
    _change(path, name, {"presets": None, "profiles": None})


def _change(path: Path, name: str, entries: Mapping[str, msgspec.Struct | None]) -> None:
    from ruamel.yaml import YAML

    path = path.resolve()
    old = read_text(path) if path.exists() else ""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    root: Any = yaml.load(old or _HEAD + "presets: {}\n") or {}
    for section, entry in entries.items():
        kept = root.get(section)
        if entry is None:
            if kept and name in kept:
                del kept[name]
                if not kept:
                    root[section] = {}
            continue
        if not kept:
            # An empty one may be written in braces, which long texts do not stand well in.
            kept = root[section] = yaml.map()
        kept[name] = _plain(entry)
    stream = io.StringIO()
    yaml.dump(root, stream)
    new = stream.getvalue()
    after = parse(new, str(path), env={}).to(Library)
    for section, entry in entries.items():
        if getattr(after, section).get(name) != entry:
            raise DocumentError(str(path), None, f"{section}.{name}", "cannot be put into this file")
    replace_text(path, old, new, mode=0o600)


def _plain(entry: msgspec.Struct) -> Any:
    """As it stands in a file: without what is as always, and with what a text may not say literally."""
    whole = msgspec.json.decode(msgspec.json.encode(entry, enc_hook=int))
    if isinstance(entry, Preset):
        empty = msgspec.to_builtins(Preset(model=""))
        whole = {key: value for key, value in whole.items() if value not in (empty.get(key), [])}
    return _quoted(escaped(whole))


def _quoted(value: Any) -> Any:
    """With texts in quotes that would not come back from a file otherwise: every line break is one to YAML."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    match value:
        case str():
            return value if value.replace("\n", "").isprintable() else DoubleQuotedScalarString(value)
        case list():
            return [_quoted(item) for item in value]
        case dict():
            return {key: _quoted(item) for key, item in value.items()}
    return value
