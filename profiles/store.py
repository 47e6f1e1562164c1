"""Where profiles come from: a configuration file, a manifest of their own, or those shipped; and how one is added.

Watching files for changes is done elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from hostler.profiles.schema import Profile, ProfileEntry, ProfileError, resolve
from hostler.profiles.sources import Source
from hostler.profiles.yaml_config import Document, DocumentError, parse

MANIFEST_KEY = "profiles"

logger = logging.getLogger(__name__)


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """The names of profiles that a reload touches."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


class _Wrapped(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    profiles: Mapping[str, ProfileEntry]


class _Loose(msgspec.Struct, frozen=True, kw_only=True):
    """A main file, whose other sections are not this module's concern."""

    profiles: Mapping[str, ProfileEntry]


class _Section(msgspec.Struct, frozen=True, kw_only=True):
    """Entries, the document they stand in, and where in it."""

    document: Document
    prefix: tuple[str, ...]
    entries: Mapping[str, ProfileEntry]


def demo_profiles() -> tuple[Profile, ...]:
    """The shipped profiles that run when nothing is configured."""
    return _resolved([_manifest(shipped("demo.yaml"), "demo.yaml", {})])


def shipped(name: str) -> str:
    """The text of a file that comes with the package: `demo.yaml`, `example.yaml`."""
    return resources.files("hostler.profiles").joinpath(name).read_text(encoding="utf-8")


def read_profiles(path: Path, *, env: Mapping[str, str]) -> tuple[Profile, ...]:
    """The profiles of a manifest: a `profiles:` mapping, or that mapping alone. Raises `DocumentError`."""
    return _resolved([_manifest(read_text(path), str(path), env)])


def profiles_of(
    document: Document | None,
    entries: Mapping[str, ProfileEntry],
    manifest: Path | None = None,
    *,
    made: tuple[Document, Mapping[str, ProfileEntry]] | None = None,
    env: Mapping[str, str],
) -> tuple[Profile, ...]:
    """All profiles of an installation: the `profiles:` section of the main file and those of its manifest.

    With neither, the shipped ones. One file's profiles may be based on the other's. Relative paths of models start
    at the file they stand in. `made` are those that clients made: one that cannot be, because what it is based on has
    gone or its name is taken now, is left out and logged. Raises `DocumentError` with file and line.
    """
    sections = []
    if document is not None and entries:
        sections.append(_Section(document=document, prefix=(MANIFEST_KEY,), entries=entries))
    if manifest is not None:
        sections.append(_manifest(read_text(manifest), str(manifest), env))
    if not sections:
        sections.append(_manifest(shipped("demo.yaml"), "demo.yaml", {}))
    return _resolved(sections) if made is None else _with_made(sections, *made)


def diff(old: Iterable[Profile], new: Iterable[Profile]) -> Changes:
    """What became of the profiles between two readings, by name."""
    before = {profile.name: profile for profile in old}
    after = {profile.name: profile for profile in new}
    return Changes(
        added=tuple(name for name in after if name not in before),
        changed=tuple(name for name in after if name in before and before[name] != after[name]),
        removed=tuple(name for name in before if name not in after),
    )


def add_profile(path: Path, name: str, entry: ProfileEntry) -> None:
    """Write a new profile into a configuration file or manifest, made if need be; all else stays as it is.

    Either the whole new file is there afterwards or the old one. Raises `DocumentError` if the profile would not be
    a valid one there, or if its name is taken.
    """
    path = path.resolve()
    old = read_text(path) if path.exists() else ""
    document, prefix = _as_written(old, path)
    if name in _names(document, prefix):
        raise document.error((*prefix, name), "there is a profile of that name already")
    plain = msgspec.json.decode(msgspec.json.encode(entry, enc_hook=int))
    new = _inserted(old, document, prefix, name, plain)
    changed, _ = _as_written(new, path)
    entries = changed.to(_Loose).profiles if prefix else changed.to(dict[str, ProfileEntry])
    _resolved([_Section(document=changed, prefix=prefix, entries=entries)])
    replace_text(path, old, new)


def read_text(path: Path) -> str:
    """The text of a settings file. Raises `DocumentError` if it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise DocumentError(str(path), None, "", "is not UTF-8 text") from None
    except OSError as error:
        raise DocumentError(str(path), None, "", f"cannot be read: {error.strerror or error}") from None


def _manifest(text: str, source: str, env: Mapping[str, str]) -> _Section:
    document = parse(text, source, env=env)
    if not isinstance(document.value, dict) or not document.value:
        raise document.error((), "has no profiles: it should be a mapping of names to profiles")
    if MANIFEST_KEY in document.value:
        return _Section(document=document, prefix=(MANIFEST_KEY,), entries=document.to(_Wrapped).profiles)
    return _Section(document=document, prefix=(), entries=document.to(dict[str, ProfileEntry]))


def _resolved(sections: list[_Section]) -> tuple[Profile, ...]:
    entries: dict[str, ProfileEntry] = {}
    homes: dict[str, _Section] = {}
    for section in sections:
        for name, entry in section.entries.items():
            if (other := homes.get(name)) is not None:
                line = other.document.line(*other.prefix, name)
                place = f"{other.document.source}:{line}"
                raise section.document.error((*section.prefix, name), f"there is a profile of that name in {place}")
            entries[name] = entry
            homes[name] = section
    try:
        profiles = resolve(entries)
    except ProfileError as error:
        section = homes[error.profile]
        path = (*section.prefix, error.profile, *([error.key] if error.key else []))
        raise section.document.error(path, error.message) from None
    return tuple(_anchored(profile, entries, homes) for profile in profiles)


def _with_made(
    sections: list[_Section], document: Document, entries: Mapping[str, ProfileEntry]
) -> tuple[Profile, ...]:
    """All of them, as far as those that were made can be."""
    certain = _resolved(sections)
    left = dict(entries)
    while left:
        try:
            return _resolved([*sections, _Section(document=document, prefix=(MANIFEST_KEY,), entries=left)])
        except DocumentError as error:
            logger.warning("%s; it is left out", error)
            # The longest name that the path begins with: names may hold dots, too.
            fitting = [each for each in left if error.path.startswith(f"{MANIFEST_KEY}.{each}")]
            left.pop(max(fitting, key=len, default=next(iter(left))))
    return certain


def _anchored(profile: Profile, entries: Mapping[str, ProfileEntry], homes: Mapping[str, _Section]) -> Profile:
    """With an absolute path of the model: relative ones start at the file that names the model."""
    if Source.parse(profile.model).kind != "path":
        return profile
    owner = profile.name
    while not entries[owner].model and entries[owner].base:
        owner = str(entries[owner].base)
    folder = Path(homes[owner].document.source).absolute().parent
    return msgspec.structs.replace(profile, model=str(folder / Path(profile.model).expanduser()))


class _Environment(dict[str, str]):
    """The real one; a variable that is not set here stands for something, since the service may well have it."""

    def get(self, key: str, default: Any = None) -> Any:
        return os.environ.get(key, "1")


def _as_written(text: str, path: Path) -> tuple[Document, tuple[str, ...]]:
    """The document as far as profiles go, and where they stand in it."""
    document = parse(text, str(path), env=_Environment())
    value = document.value
    if not isinstance(value, dict):
        raise document.error((), "should be a mapping")
    bare = value and MANIFEST_KEY not in value
    is_manifest = bare and all(isinstance(entry, dict) and entry.keys() & {"model", "base"} for entry in value.values())
    return document, () if is_manifest else (MANIFEST_KEY,)


def _names(document: Document, prefix: tuple[str, ...]) -> dict[str, Any]:
    value = document.value or {}
    for step in prefix:
        value = value.get(step) or {}
    return value if isinstance(value, dict) else {}


def _inserted(old: str, document: Document, prefix: tuple[str, ...], name: str, plain: dict[str, Any]) -> str:
    """The new text. First as lines put in at the right place, which leaves every other byte as it is."""
    existing = _names(document, prefix)
    wanted = {**existing, name: plain}
    for attempt in (_by_lines, _by_rewriting):
        new = attempt(old, prefix, list(existing), name, escaped(plain))
        if new is None:
            continue
        with contextlib.suppress(DocumentError):
            after, _ = _as_written(new, Path(document.source))
            if _names(after, prefix) == wanted and _others(after, prefix) == _others(document, prefix):
                return new
    raise document.error((*prefix, name), "cannot be put into this file: please write it by hand")


def _others(document: Document, prefix: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in (document.value or {}).items() if key not in prefix} if prefix else {}


def _by_lines(old: str, prefix: tuple[str, ...], existing: list[str], name: str, plain: dict[str, Any]) -> str | None:
    """Put the entry below the last line of the last profile, indented like it; `None` where that is not possible."""
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
    last = _last_line(root)
    if not lines[last].endswith("\n"):
        lines[last] += "\n"
    ending = "\r\n" if lines[last].endswith("\r\n") else "\n"
    block = [" " * indent + line + ending for line in _rendered({name: plain}).splitlines()]
    gap = [ending] if any(not line.strip() for line in lines[root.start_mark.line : last]) else []
    return "".join([*lines[: last + 1], *gap, *block, *lines[last + 1 :]])


def _last_line(node: Any) -> int:
    """The last line that holds something of `node`; its own end mark lies behind the comments that follow."""
    if isinstance(node.value, list) and node.value:
        last = node.value[-1]
        inside = max(_last_line(child) for child in (last if isinstance(last, tuple) else (last,)))
        return max(inside, int(node.end_mark.line)) if node.flow_style else inside
    end = node.end_mark
    return int(end.line) if end.column or end.line == node.start_mark.line else int(end.line) - 1


def _by_rewriting(old: str, prefix: tuple[str, ...], existing: list[str], name: str, plain: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    root: Any = yaml.load(old)
    if root is None:
        return old + ("" if not old or old.endswith("\n") else "\n") + _rendered({MANIFEST_KEY: {name: plain}})
    mapping = root
    for step in prefix:
        if not mapping.get(step):
            mapping[step] = {}
        mapping = mapping[step]
    mapping[name] = plain
    stream = io.StringIO()
    yaml.dump(root, stream)
    return stream.getvalue()


def _rendered(value: Any) -> str:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def escaped(value: Any) -> Any:
    """`value` as it must stand in a file, where a dollar sign may begin a variable."""
    match value:
        case str():
            return value.replace("$", "$$")
        case list():
            return [escaped(item) for item in value]
        case dict():
            return {key: escaped(item) for key, item in value.items()}
    return value


def replace_text(path: Path, old: str, new: str, *, mode: int = 0o644) -> None:
    """Put `new` in place of `old` in one step, with the same permissions; `mode` is for a file that was not there.

    Raises `DocumentError` if somebody else has changed it, and `OSError`.
    """
    mode = path.stat().st_mode & 0o7777 if path.exists() else mode
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(new.encode())
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if path.exists() and path.read_bytes() != old.encode():
            raise DocumentError(str(path), None, "", "was changed by somebody else at the same time: try again")
        Path(fresh).replace(path)
    finally:
        Path(fresh).unlink(missing_ok=True)
