"""Changes profiles in a configuration file or manifest, in which all else stays as it is, comments included."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from hostler.profiles.file_reading import real_path
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.store import MANIFEST_KEY, check_profiles, escape_dollars, read_text, replace_text
from hostler.profiles.yaml_config import Document, DocumentError, parse
from hostler.profiles.yaml_nodes import (
    AnyEnvironment,
    child,
    compose,
    last_line,
    pairs,
    pairs_at,
    round_trip,
    scalars,
    to_yaml,
)

#: A name that YAML reads as a text without quotes.
_PLAIN = re.compile(r"(?!(?:true|false|yes|no|on|off|null)$)[A-Za-z][A-Za-z0-9._/-]*", re.IGNORECASE)


def add_profile(path: Path, name: str, entry: ProfileEntry) -> None:
    """Add a profile to a configuration file or manifest, created if need be; all else stays as it is.

    Atomic. Raises `DocumentError` if the profile would not be valid there, or if its name is taken.
    """
    path = real_path(path)
    old = read_text(path) if path.exists() else ""
    document, prefix = _parse_for_writing(old, path)
    if name in _profiles_at(document, prefix):
        raise document.error((*prefix, name), "a profile of that name already exists")
    plain = msgspec.json.decode(msgspec.json.encode(entry, enc_hook=int))
    new = _insert(old, document, prefix, name, plain)
    changed, _ = _parse_for_writing(new, path)
    check_profiles(changed, prefix)
    replace_text(path, old, new)


def write_sections(path: Path, sections: Mapping[str, Any]) -> None:
    """Write a new configuration file with these sections. Raises `DocumentError` if there is one, and `OSError`."""
    if path.exists():
        raise DocumentError(str(path), None, "", "exists already")
    replace_text(path, "", sections_text(sections))


def sections_text(sections: Mapping[str, Any]) -> str:
    """These sections as a configuration file has them."""
    return to_yaml(escape_dollars(dict(sections))) if sections else ""


def _parse_for_writing(text: str, path: Path) -> tuple[Document, tuple[str, ...]]:
    """The document, and the keys that lead to its profiles."""
    document = parse(text, str(path), env=AnyEnvironment())
    value = document.value
    if not isinstance(value, dict):
        raise document.error((), "expected a mapping")
    bare = value and MANIFEST_KEY not in value
    is_manifest = bare and all(isinstance(entry, dict) and entry.keys() & {"model", "base"} for entry in value.values())
    return document, () if is_manifest else (MANIFEST_KEY,)


def _profiles_at(document: Document, prefix: tuple[str, ...]) -> dict[str, Any]:
    value = document.value or {}
    for step in prefix:
        value = value.get(step) or {}
    return value if isinstance(value, dict) else {}


def _insert(old: str, document: Document, prefix: tuple[str, ...], name: str, plain: dict[str, Any]) -> str:
    """The new text: with lines inserted, which leaves every other byte as it is, or else rewritten by ruamel."""
    existing = _profiles_at(document, prefix)
    wanted = {**existing, name: plain}
    for method in (_insert_lines, _rewrite):
        new = method(old, prefix, list(existing), name, escape_dollars(plain))
        if new is None:
            continue
        with contextlib.suppress(DocumentError):
            after, _ = _parse_for_writing(new, Path(document.source))
            if _profiles_at(after, prefix) == wanted and _other_sections(after, prefix) == _other_sections(
                document, prefix
            ):
                return new
    raise document.error((*prefix, name), "could not be added automatically; edit the file by hand")


def _other_sections(document: Document, prefix: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in (document.value or {}).items() if key not in prefix} if prefix else {}


def _insert_lines(
    old: str, prefix: tuple[str, ...], existing: list[str], name: str, plain: dict[str, Any]
) -> str | None:
    """With the entry below the last profile, indented like it; `None` where that is not possible."""
    if not existing:
        return None
    from ruamel.yaml import YAML

    root: Any = YAML(typ="safe", pure=True).compose(old)
    for step in prefix:
        root = next(value for key, value in root.value if key.value == step)
    if root.flow_style or not root.value:
        return None
    indent = root.value[0][0].start_mark.column
    lines = old.splitlines(keepends=True)
    last = last_line(root)
    if not lines[last].endswith("\n"):
        lines[last] += "\n"
    ending = "\r\n" if lines[last].endswith("\r\n") else "\n"
    block = [" " * indent + line + ending for line in to_yaml({name: plain}).splitlines()]
    gap = [ending] if any(not line.strip() for line in lines[root.start_mark.line : last]) else []
    return "".join([*lines[: last + 1], *gap, *block, *lines[last + 1 :]])


def _rewrite(old: str, prefix: tuple[str, ...], existing: list[str], name: str, plain: dict[str, Any]) -> str:
    if compose(old) is None:
        return old + ("" if not old or old.endswith("\n") else "\n") + to_yaml({MANIFEST_KEY: {name: plain}})

    def add(mapping: Any) -> None:
        for step in prefix:
            if not mapping.get(step):
                mapping[step] = {}
            mapping = mapping[step]
        mapping[name] = plain

    return round_trip(old, add)


def remove_profile(path: Path, name: str) -> None:
    """Remove a profile; all else stays as it is. Atomic.

    Raises `DocumentError` if there is no such profile, or if the file would not be valid without it.
    """
    path = real_path(path)
    old = read_text(path)
    document, prefix = _parse_for_writing(old, path)
    _existing(document, prefix, name)
    new = _without_lines(old, prefix, name) or _rewritten_without(old, prefix, name)
    _replace_checked(path, old, new)


def rename_profile(path: Path, name: str, new_name: str) -> None:
    """Rename a profile, and every mention of it in the same file: in `base`, variants, groups and sets. Atomic.

    Raises `DocumentError` if there is no such profile, or if the file would not be valid.
    """
    path = real_path(path)
    old = read_text(path)
    document, prefix = _parse_for_writing(old, path)
    profiles = _existing(document, prefix, name)
    if new_name in profiles:
        raise document.error((*prefix, new_name), "a profile of that name already exists")
    root = compose(old)
    edits = [key for key, _ in pairs_at(root, prefix) if key.value == name]
    edits += [value for _, entry in pairs_at(root, prefix) for key, value in pairs(entry) if key.value == "base"]
    if prefix:
        variants = [pair for _, variant in pairs_at(root, ("variants",)) for pair in pairs(variant)]
        edits += [value for key, value in variants if key.value == "model"]
        edits += scalars(child(child(root, "supervisor"), "groups")) + scalars(child(child(root, "supervisor"), "sets"))
    new = old
    written = new_name if _PLAIN.fullmatch(new_name) else f'"{new_name}"'
    for node in sorted(edits, key=lambda each: -int(each.start_mark.index)):
        if node.value == name:
            new = new[: node.start_mark.index] + written + new[node.end_mark.index :]
    _replace_checked(path, old, new)


def _existing(document: Document, prefix: tuple[str, ...], name: str) -> dict[str, Any]:
    profiles = _profiles_at(document, prefix)
    if not isinstance(profiles.get(name), dict):
        known = ", ".join(key for key, value in profiles.items() if isinstance(value, dict))
        raise document.error(prefix, f"there is no profile {name} in this file; profiles are: {known or 'none'}")
    return profiles


def _replace_checked(path: Path, old: str, new: str) -> None:
    changed, prefix = _parse_for_writing(new, path)
    check_profiles(changed, prefix)
    replace_text(path, old, new)


def _without_lines(old: str, prefix: tuple[str, ...], name: str) -> str | None:
    """Without the lines of the profile; `None` where it shares them with others."""
    root = compose(old)
    for step in prefix:
        root = child(root, step)
    if root.flow_style or len(root.value) < 2:
        return None
    key, value = next(pair for pair in root.value if pair[0].value == name)
    lines = old.splitlines(keepends=True)
    return "".join([*lines[: key.start_mark.line], *lines[last_line(value) + 1 :]])


def _rewritten_without(old: str, prefix: tuple[str, ...], name: str) -> str:
    def remove(mapping: Any) -> None:
        for step in prefix:
            mapping = mapping[step]
        del mapping[name]

    return round_trip(old, remove)
