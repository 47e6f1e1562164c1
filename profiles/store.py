"""Loads profiles from a configuration file, a manifest of their own or the bundled demo.

Watching files for changes is done elsewhere, and so is changing them: `profile_edits`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hostler.profiles.engine_presets import PRESETS
from hostler.profiles.engines import EngineEntry, EngineTable, InvalidEngine, Macro, resolve_engines
from hostler.profiles.file_reading import FileTooLarge, expanded_path, read_limited, real_path
from hostler.profiles.resolution import resolve
from hostler.profiles.schema import Profile, ProfileEntry, ProfileError, name_key
from hostler.profiles.sources import is_hub_name, source_of
from hostler.profiles.yaml_config import Document, DocumentError, KeyPath, dotted, parse

MANIFEST_KEY = "profiles"
#: Beside the profiles of a configuration file: the folders whose models are profiles as well.
SCAN_PATH: KeyPath = (MANIFEST_KEY, "scan")

#: Bytes of a configuration file, at most: a mebibyte of characters.
MAX_FILE_BYTES = 4 * 1024**2

logger = logging.getLogger(__name__)

#: What error messages call the models that were found in folders.
_FOUND = "found models"


#: Finds profiles for an engine, given like `supervisor.engine`, in folders that the configuration names, and perhaps in
#: others. `None` if there is nowhere to look. Never raises.
FindModels = Callable[[Sequence[Path], str | None], Mapping[str, ProfileEntry] | None]


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Names of the profiles that differ between two loads."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


class _ProfilesSection(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a configuration file that this module reads."""

    profiles: Mapping[str, ProfileEntry] = {}
    engines: Mapping[str, EngineEntry] = {}
    macros: Mapping[str, Macro] = {}


class _Manifest(_ProfilesSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole file of profiles."""


class _Entries(msgspec.Struct, frozen=True, kw_only=True):
    """The entries of one document, below the keys `prefix`."""

    document: Document
    prefix: KeyPath
    entries: Mapping[str, ProfileEntry]
    engines: Mapping[str, EngineEntry] = {}
    macros: Mapping[str, Macro] = {}


def demo_profiles() -> tuple[Profile, ...]:
    """The bundled profiles that run when nothing is configured."""
    return _resolve([_manifest_entries(bundled_text("demo.yaml"), "demo.yaml", {})])


def bundled_text(name: str) -> str:
    """A file that comes with the package: `demo.yaml`, `example.yaml`."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def load_profiles(
    document: Document | None,
    entries: Mapping[str, ProfileEntry],
    manifest: Path | None = None,
    *,
    engines: Mapping[str, EngineEntry] | None = None,
    macros: Mapping[str, Macro] | None = None,
    default_engine: str | None = None,
    shared: SharedSection | None = None,
    created: tuple[Document, Mapping[str, ProfileEntry]] | None = None,
    env: Mapping[str, str],
    read: Callable[[Path], str] | None = None,
    errors: list[DocumentError] | None = None,
    found: Mapping[str, ProfileEntry] | None = None,
) -> tuple[Profile, ...]:
    """All profiles of an installation: the `profiles:` section of the main file, those of its manifest, and the models
    `found` in folders, unless a profile has their file or their name.

    With none of these, the bundled ones. One file's profiles may be based on the other's, and on its `engines` and
    `macros`; profiles without an engine get `default_engine`. Relative model paths start at the file they are written in.
    `shared` are the profiles that all hosts of a cluster share; one with the name of a profile of the main file or the
    manifest is not used. Its `used`, `overridden` and `left_out` are set here. `created` are those that clients created:
    one that is invalid, because its base is gone or its name is taken by now, is left out with a warning. `read` returns
    the manifest's text. Raises `DocumentError` with file and line; with `errors`, what is invalid is left out and added
    to it instead.
    """
    sections = []
    if document is not None and (entries or engines or macros):
        main = _Entries(
            document=document, prefix=(MANIFEST_KEY,), entries=entries, engines=engines or {}, macros=macros or {}
        )
        sections.append(main)
    if manifest is not None:
        try:
            sections.append(_manifest_entries((read or read_text)(manifest), str(manifest), env, errors))
        except DocumentError as error:
            if errors is None:
                raise
            errors.append(error)
    if shared is not None and not errors:
        sections.append(_shared_entries(shared, sections, default_engine))
    if found is not None:
        section = _Entries(document=parse("", _FOUND, env={}), prefix=(), entries=_not_taken(found, sections))
        sections.append(section)
    elif not any(section.entries for section in sections) and not errors:
        sections.append(_manifest_entries(bundled_text("demo.yaml"), "demo.yaml", {}))
    table = _engine_table(sections, default_engine, errors)
    if created is None or errors:
        return _resolve(sections, errors, table)
    return _resolve_with_created(sections, table, *created)


def scan_folders(document: Document, errors: list[DocumentError] | None = None) -> tuple[str, ...] | None:
    """The folders that `profiles.scan` of a configuration file names; `None` without it, or if it is a profile.

    Raises `DocumentError` if it is no list of paths; with `errors`, that is added to it instead.
    """
    profiles = document.value.get(MANIFEST_KEY) if isinstance(document.value, dict) else None
    if not isinstance(profiles, dict) or "scan" not in profiles or isinstance(profiles["scan"], dict):
        return None
    folders = profiles["scan"]
    mistake: DocumentError | None = None
    if not isinstance(folders, list):
        mistake = document.error(SCAN_PATH, "expected a list of folders, such as [~/models]")
    for index, folder in enumerate(folders if isinstance(folders, list) else ()):
        try:
            if not isinstance(folder, str) or not folder:
                raise ValueError("expected the path of a folder")
            expanded_path(folder)
        except ValueError as error:
            mistake = mistake or document.error((*SCAN_PATH, index), str(error))
    if mistake is None:
        return tuple(folders)
    if errors is None:
        raise mistake
    errors.append(mistake)
    return ()


def check_profiles(document: Document, prefix: KeyPath) -> None:
    """Raises `DocumentError` unless the profiles below the keys `prefix` are valid."""
    errors: list[DocumentError] = []
    if prefix:
        scanned = scan_folders(document) is not None
        part = document.fit(_ProfilesSection, errors, omit=[SCAN_PATH] if scanned else []) or _ProfilesSection()
    else:
        part = _ProfilesSection(profiles=document.fit(dict[str, ProfileEntry], errors) or {})
    if errors:
        raise errors[0]
    _resolve([_entries(document, prefix, part)])


def diff(old: Iterable[Profile], new: Iterable[Profile]) -> Changes:
    before = {profile.name: profile for profile in old}
    after = {profile.name: profile for profile in new}
    return Changes(
        added=tuple(name for name in after if name not in before),
        changed=tuple(name for name in after if name in before and before[name] != after[name]),
        removed=tuple(name for name in before if name not in after),
    )


def read_text(path: Path) -> str:
    """Raises `DocumentError` if the file cannot be read, is no regular file, or is larger than `MAX_FILE_BYTES`."""
    try:
        return read_limited(path, MAX_FILE_BYTES).decode("utf-8")
    except FileTooLarge as error:
        raise DocumentError(str(path), None, "", str(error)) from None
    except UnicodeDecodeError:
        raise DocumentError(str(path), None, "", "is not UTF-8 text") from None
    except OSError as error:
        raise DocumentError(str(path), None, "", f"cannot be read: {error.strerror or error}") from None


class SharedSection:
    """The profiles that all hosts of a cluster share, and what becomes of them on this one: `used` are the names of those
    that it has, `overridden` of those that its own file has as well, `left_out` why it cannot have others."""

    def __init__(self, document: Document, entries: Mapping[str, ProfileEntry]) -> None:
        self.document = document
        self.entries = entries
        self.used: tuple[str, ...] = ()
        self.overridden: tuple[str, ...] = ()
        self.left_out: list[str] = []


def _shared_entries(shared: SharedSection, sections: Sequence[_Entries], default_engine: str | None) -> _Entries:
    taken = {
        name_key(each)
        for section in sections
        for name, entry in section.entries.items()
        for each in (name, *(entry.aliases or ()))
    }
    entries = {name: entry for name, entry in shared.entries.items() if name_key(name) not in taken}
    shared.overridden = tuple(name for name in shared.entries if name not in entries)
    section = _Entries(document=shared.document, prefix=(MANIFEST_KEY,), entries=entries)
    table = _engine_table([*sections], default_engine, None)
    kept = _usable(sections, table, section, lambda error: shared.left_out.append(str(error)))
    shared.used = tuple(kept.entries)
    return kept


def _not_taken(found: Mapping[str, ProfileEntry], sections: Iterable[_Entries]) -> dict[str, ProfileEntry]:
    """The found models whose file and name no profile has."""
    names: set[str] = set()
    files: set[Path] = set()
    for section in sections:
        folder = Path(section.document.source).absolute().parent
        for name, entry in section.entries.items():
            names.update(name_key(each) for each in (name, *(entry.aliases or ())))
            if isinstance(entry.model, str):
                with contextlib.suppress(ValueError, OSError):
                    files.add(real_path(folder / expanded_path(entry.model)))
    return {
        name: entry
        for name, entry in found.items()
        if name_key(name) not in names and real_path(Path(str(entry.model))) not in files
    }


def _manifest_entries(
    text: str, source: str, env: Mapping[str, str], errors: list[DocumentError] | None = None
) -> _Entries:
    document = parse(text, source, env=env, errors=errors)
    if not isinstance(document.value, dict) or not document.value:
        raise document.error((), "has no profiles: expected a mapping of names to profiles")
    if MANIFEST_KEY in document.value:
        fitting = (document.to(_Manifest) if errors is None else document.fit(_Manifest, errors)) or _Manifest()
        return _entries(document, (MANIFEST_KEY,), fitting)
    shape = dict[str, ProfileEntry]
    entries = document.to(shape) if errors is None else document.fit(shape, errors) or {}
    return _Entries(document=document, prefix=(), entries=entries)


def _entries(document: Document, prefix: KeyPath, part: _ProfilesSection) -> _Entries:
    return _Entries(document=document, prefix=prefix, entries=part.profiles, engines=part.engines, macros=part.macros)


def _engine_table(sections: list[_Entries], default: str | None, errors: list[DocumentError] | None) -> EngineTable:
    """The engines of all documents together, and the presets. Raises `DocumentError` if there are no `errors`."""
    invalid: list[InvalidEngine] = []
    engines = {name: entry for section in sections for name, entry in section.engines.items()}
    macros = {name: value for section in sections for name, value in section.macros.items()}
    table = resolve_engines(engines, PRESETS, macros, default=default, errors=invalid)
    for error in invalid:
        section = next(each for each in sections if error.path[1] in (*each.engines, *each.macros))
        found = section.document.error(error.path, error.message)
        if errors is None:
            raise found
        errors.append(found)
    return table


def _resolve(
    sections: list[_Entries], errors: list[DocumentError] | None = None, engines: EngineTable | None = None
) -> tuple[Profile, ...]:
    if engines is None:
        engines = _engine_table(sections, None, errors)
    entries: dict[str, ProfileEntry] = {}
    origins: dict[str, _Entries] = {}
    for section in sections:
        for name, entry in section.entries.items():
            if (other := origins.get(name)) is not None:
                line = other.document.line(*other.prefix, name)
                place = f"{other.document.source}:{line}"
                found = section.document.error((*section.prefix, name), f"a profile of that name exists in {place}")
                if errors is None:
                    raise found
                errors.append(found)
                continue
            entries[name] = entry
            origins[name] = section
    invalid: list[ProfileError] = []
    profiles = resolve(entries, invalid, engines)
    for error in invalid:
        section = origins[error.profile]
        path = (*section.prefix, error.profile, *([error.key] if error.key else []))
        found = section.document.error(path, error.message)
        if errors is None:
            raise found
        # What could not be read is reported already, and so is what follows from it.
        place = dotted((*section.prefix, error.profile))
        if not any(each.source == found.source and f"{each.path}.".startswith(f"{place}.") for each in errors):
            errors.append(found)
    return tuple(_with_absolute_paths(profiles, entries, origins, errors))


def _resolve_with_created(
    sections: list[_Entries], engines: EngineTable, document: Document, entries: Mapping[str, ProfileEntry]
) -> tuple[Profile, ...]:
    """All profiles, without those created ones that are invalid."""
    _resolve(sections, None, engines)  # what is wrong there is no fault of theirs
    created = _Entries(document=document, prefix=(MANIFEST_KEY,), entries=entries)
    kept = _usable(sections, engines, created, lambda error: logger.warning("%s; this model is ignored", error))
    return _resolve([*sections, kept], None, engines)


def _usable(
    sections: Sequence[_Entries], engines: EngineTable, added: _Entries, leave_out: Callable[[DocumentError], None]
) -> _Entries:
    """What remains of the `added` entries without those that are invalid beside the others; `leave_out` is told why."""
    remaining = dict(added.entries)
    while remaining:
        kept = msgspec.structs.replace(added, entries=remaining)
        try:
            _resolve([*sections, kept], None, engines)
        except DocumentError as error:
            if error.source != added.document.source and _is_broken(sections, engines):
                return kept  # whatever is added: the error is reported as that of the others
            leave_out(error)
            # The longest name that the path starts with: names may contain dots, too.
            matching = [name for name in remaining if error.path.startswith(f"{MANIFEST_KEY}.{name}")]
            remaining.pop(max(matching, key=len, default=next(iter(remaining))))
        else:
            return kept
    return msgspec.structs.replace(added, entries={})


def _is_broken(sections: Sequence[_Entries], engines: EngineTable) -> bool:
    try:
        _resolve([*sections], None, engines)
    except DocumentError:
        return True
    return False


def _with_absolute_paths(
    profiles: Iterable[Profile],
    entries: Mapping[str, ProfileEntry],
    origins: Mapping[str, _Entries],
    errors: list[DocumentError] | None,
) -> Iterator[Profile]:
    """Relative paths start at the file that names them. What an engine finds on the Hugging Face Hub is marked so."""
    for profile in profiles:
        changes = {}
        for key in ("model", "mmproj", "draft"):
            text = getattr(profile, key)
            if not text or source_of(text).kind != "path":
                continue
            owner = profile.name
            while not getattr(entries[owner], key) and entries[owner].base:
                owner = str(entries[owner].base)
            section = origins[owner]
            try:
                path = Path(section.document.source).absolute().parent / expanded_path(text)
            except ValueError as error:
                found = section.document.error((*section.prefix, owner, key), str(error))
                if errors is None:
                    raise found from None
                errors.append(found)
                break
            engine = profile.definition
            on_hub = engine is not None and not engine.llama_server and is_hub_name(text) and not path.exists()
            changes[key] = f"hub:{text}" if on_hub and key == "model" else str(path)
        else:
            yield msgspec.structs.replace(profile, **changes)


class Written(str):
    """Text that is already escaped for a file: `${env:NAME}` in it is a variable, `$$` a dollar sign."""

    __slots__ = ()


def escape_dollars(value: Any) -> Any:
    """`value` as it is written in a file, where `$` starts a variable."""
    match value:
        case Written():
            return str(value)
        case str():
            return value.replace("$", "$$")
        case list():
            return [escape_dollars(item) for item in value]
        case dict():
            return {key: escape_dollars(item) for key, item in value.items()}
    return value


def replace_text(path: Path, old: str, new: str, *, mode: int = 0o644) -> None:
    """Replace the text `old` of a file in one step, with the same permissions; `mode` is for a new file.

    Raises `DocumentError` if the file has changed meanwhile, and `OSError`.
    """
    mode = path.stat().st_mode & 0o7777 if path.exists() else mode
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(new.encode())
            file.flush()
            Path(temporary).chmod(mode)
            os.fsync(file.fileno())
        if path.exists() and path.read_bytes() != old.encode():
            raise DocumentError(str(path), None, "", "was changed by another program at the same time; try again")
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
