"""Reads the configuration file, and the files that belong to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hostler.gateway.cluster_settings import ClusterSettings
from hostler.gateway.file_settings import with_absolute_paths
from hostler.gateway.gateway_settings import GatewaySettings, LibrarySettings
from hostler.gateway.setting_rules import NO_KEY, broken_rules, is_plain_key, section_of
from hostler.gateway.settings import Settings, parse_address
from hostler.gateway.shared_files import host_names, shared_file
from hostler.gateway.state_files import service_directory, state_file
from hostler.profiles.file_reading import FileTooLarge, expanded_path, read_limited
from hostler.profiles.library import Library, optional_text, read_library
from hostler.profiles.presets import Preset
from hostler.profiles.schema import Profile, ProfileEntry
from hostler.profiles.shared_profiles import parse_shared_profiles
from hostler.profiles.store import SCAN_PATH, FindModels, SharedSection, load_profiles, read_text, scan_folders
from hostler.profiles.yaml_config import NOT_SENDABLE, Document, DocumentError, parse
from hostler.supervisor.config import HostLimits


class ConfigError(Exception):
    """The configuration is invalid. Each of `mistakes` names file, line and key, and the remedy.

    `partial` is what remains of the configuration without what is at `omitted` (`backends.lan.url`).
    """

    def __init__(self, *mistakes: str, partial: Configuration | None = None, omitted: Iterable[str] = ()) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes
        self.partial = partial
        self.omitted = tuple(omitted)


#: Where the file of a service is.
_SYSTEM_FILE = (
    Path(os.environ.get("PROGRAMDATA") or "C:/ProgramData", "hostler", "hostler.yaml")
    if sys.platform == "win32"
    else Path("/etc/hostler/hostler.yaml")
)


#: Names the configuration file where no option does.
FILE_VARIABLE = "HOSTLER_CONFIG"


def find_file(given: str | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration file: as given, else `HOSTLER_CONFIG`, `./hostler.yaml`, `/etc/hostler/hostler.yaml`, or none.

    Raises `ConfigError` if a file that was named does not exist.
    """
    named = given or environ.get(FILE_VARIABLE)
    if named:
        origin = "--config" if given else FILE_VARIABLE
        try:
            path = expanded_path(named)
            if path.is_file():
                return path
            what = "that is a folder" if path.is_dir() else "there is no such file"
        except (ValueError, OSError) as error:
            what = str(error)
        raise ConfigError(f"{origin} names {named}, but {what}")
    for candidate in (Path("hostler.yaml"), _SYSTEM_FILE):
        if candidate.is_file():
            return candidate
    return None


class FileErrors(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with the configuration file, while an earlier state of it is in use. `since` in seconds since the epoch."""

    file: str
    mistakes: tuple[str, ...]
    since: float


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What a command line sets instead of the file: an address, and a further API key."""

    listen: str | None = None
    key: str | None = None

    def apply(self, configuration: Configuration) -> Configuration:
        """The configuration with these values, which a reload keeps. Raises `ConfigError` for one that is none."""
        settings = configuration.settings.gateway
        if self.listen is not None:
            try:
                parse_address(self.listen)
            except ValueError as error:
                raise ConfigError(f"--listen: {error}") from error
            settings = msgspec.structs.replace(settings, listen=(self.listen,))
        if self.key is not None:
            if not is_plain_key(self.key):
                raise ConfigError(f"--key: {NO_KEY}")
            settings = msgspec.structs.replace(settings, api_keys=(*settings.api_keys, self.key))
        return msgspec.structs.replace(
            configuration, overrides=self, settings=msgspec.structs.replace(configuration.settings, gateway=settings)
        )


class SharedState(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine has of the profiles that its cluster shares: the `text` of its `file`, `None` if there is none. See
    `SharedSection`."""

    file: Path | None = None
    text: str | None = None
    names: tuple[str, ...] = ()
    overridden: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration as read: `path` is `None` without a file. `shipped`: no profiles are configured.

    `library` is the file of the models that clients created, `presets` those of them that are no profiles. `host_limits`
    are the limits of a host's queue and switches that the file sets, without defaults. `shared` is what the cluster's
    members share. `texts` are the files that were read with their contents, `None` for one that does not exist.
    `errors`: the files have mistakes, and this is their last good state.
    """

    path: Path | None
    settings: Settings
    profiles: tuple[Profile, ...]
    shipped: bool = False
    library: Path | None = None
    presets: Mapping[str, Preset] = {}
    host_limits: HostLimits = HostLimits()
    texts: Mapping[Path, str | None] = {}
    errors: FileErrors | None = None
    shared: SharedState = SharedState()
    overrides: Overrides = Overrides()


def read(
    path: Path | None,
    environ: Mapping[str, str] = os.environ,
    *,
    texts: Mapping[Path, str | None] | None = None,
    find_models: FindModels | None = None,
) -> Configuration:
    """Read the file at `path` with its manifest and library; defaults without a file. Relative paths start at the file.

    `texts` replace the contents of files. Without `find_models`, folders are not scanned. Raises `ConfigError` with all
    mistakes.
    """
    files = _Files(texts or {})
    errors: list[DocumentError] = []
    settings, document, manifest = Settings(), None, None
    scan: tuple[Path, ...] = ()
    found_models: Mapping[str, ProfileEntry] | None = None
    profiles: tuple[Profile, ...] | None = None
    made, file = Library(), None
    shared = _Shared()
    try:
        if path is not None:
            document = parse(files.text(path), str(path), env=environ, errors=errors)
            settings = with_absolute_paths(_valid_settings(document, errors), path.absolute().parent)
            if settings.manifest is not None:
                manifest = path.parent / expanded_path(settings.manifest)
            if (folders := scan_folders(document, errors)) is not None:
                scan = tuple(path.absolute().parent / expanded_path(folder) for folder in folders)
                found_models = {}
        if find_models is not None and (models := find_models(scan, settings.supervisor.engine)) is not None:
            found_models = models
        file = library_file(settings.gateway.library, path, environ)
        made, written = read_library(file, files.optional_text)
        shared.read(settings.cluster, files, environ)
        profiles = load_profiles(
            document,
            settings.profiles,
            manifest,
            engines=settings.engines,
            macros=settings.macros,
            default_engine=settings.supervisor.engine,
            shared=shared.section,
            created=None if written is None else (written, made.profiles),
            env=environ,
            read=files.text,
            errors=errors,
            found=found_models,
        )
    except DocumentError as error:
        errors.append(error)
    found = Configuration(
        path=path,
        settings=settings,
        profiles=profiles or (),
        shipped=not settings.profiles and manifest is None and found_models is None and not shared.state.names,
        library=file,
        presets=made.presets,
        host_limits=HostLimits() if document is None else _host_limits(settings.gateway, document.value),
        texts=files.texts,
        shared=shared.state,
    )
    if errors:
        mistakes = dict.fromkeys(str(each) for each in sorted(errors, key=_place))
        readable = None if path is not None and document is None else found
        raise ConfigError(*mistakes, partial=readable, omitted=[each.path for each in errors])
    return found


def _valid_settings(document: Document, errors: list[DocumentError]) -> Settings:
    """The settings without what is wrong, which is added to `errors`."""
    scanned = [] if scan_folders(document, []) is None else [SCAN_PATH]
    settings = document.fit(Settings, errors, omit=scanned) or Settings()
    known = {each.path for each in errors}
    broken = [each for each in broken_rules(settings, document) if each.path not in known]
    errors += broken
    return (
        document.fit(Settings, [], omit=[*scanned, *(each.keys for each in broken)]) if broken else settings
    ) or Settings()


def _place(error: DocumentError) -> tuple[str, int]:
    return error.source, error.line or 0


class _Files:
    """Reads files, and keeps in `texts` what was read. `given` replaces the contents of some."""

    def __init__(self, given: Mapping[Path, str | None]) -> None:
        self._given = given
        self.texts: dict[Path, str | None] = {}

    def text(self, path: Path) -> str:
        """Raises `DocumentError` if there is no such file, or if it cannot be read."""
        text = self.optional_text(path)
        return read_text(path) if text is None else text

    def optional_text(self, path: Path) -> str | None:
        """`None` if there is no such file. Raises `DocumentError` if it cannot be read."""
        place = path.absolute()
        self.texts[place] = self._given[place] if place in self._given else optional_text(path)
        return self.texts[place]


class _Shared:
    """Reads the profiles that the cluster's members share. Whatever is wrong with them, the file's own are used."""

    def __init__(self) -> None:
        self.section: SharedSection | None = None
        self._file: Path | None = None
        self._text: str | None = None
        self._mistake = ""

    def read(self, cluster: ClusterSettings | None, files: _Files, environ: Mapping[str, str]) -> None:
        self._file = shared_file(cluster, "profiles", lambda name: state_file(name, environ).absolute())
        if cluster is None or self._file is None:
            return
        try:
            self._text = files.optional_text(self._file)
            if self._text:
                document, found = parse_shared_profiles(self._text, str(self._file), environ)
                self.section = SharedSection(document, found.of_host(*host_names(cluster)))
        except DocumentError as error:
            self._mistake = str(error)

    @property
    def state(self) -> SharedState:
        """What has become of them."""
        section = self.section
        left_out = (self._mistake,) if self._mistake else ()
        if section is None:
            return SharedState(file=self._file, text=self._text, left_out=left_out)
        return SharedState(
            file=self._file,
            text=self._text,
            names=section.used,
            overridden=section.overridden,
            left_out=(*left_out, *section.left_out),
        )


def _host_limits(settings: GatewaySettings, document: Any) -> HostLimits:
    """The limits that the document sets: its own host is bound by them, while defaults leave them to the gateways."""
    values: dict[str, Any] = {}
    for section, names in HOST_LIMITS.items():
        written = section_of(section_of(document, "gateway"), section)
        for name in names:
            if name in written:
                values[name] = getattr(getattr(settings, section), name)
    return HostLimits(**values)


#: The settings of sections of `gateway` that limit a host, and so belong to its supervisor.
HOST_LIMITS: Mapping[str, tuple[str, ...]] = {
    "queue": ("max_waiting", "max_wait_s"),
    "switching": ("patience_s", "min_residency_s"),
}


def library_file(settings: LibrarySettings, path: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The file of the models that clients created: as configured, else in systemd's state directory, beside the
    configuration file, or in the user's state directory."""
    if settings.file is not None:
        return (path.parent if path is not None else Path()) / expanded_path(settings.file)
    if path is not None and service_directory(environ) is None:
        return path.with_name(f"{path.stem}.models.yaml")
    return state_file("models.yaml", environ)


def engines_folder(path: Path | None) -> Path:
    """Where `hostler engine update` installs: below /opt for the service's configuration file, since the service runs as
    another user, else in the user's state directory."""
    if path is None or path.absolute() != _SYSTEM_FILE:
        return state_file("engines")
    return path.with_name("engines") if sys.platform == "win32" else Path("/opt/hostler/engines")


#: Bytes of a file with a secret, at most.
_MAX_SECRET = 16 * 1024


def secret(value: str | None, file: str | None, where: str) -> str | None:
    """A secret given in place or in a file; `where` is the file's key, for errors. Raises `ConfigError`.

    An empty one is an error: it would stand for no secret at all.
    """
    if value is not None:
        if not value.strip():
            raise ConfigError(f"{where.removesuffix('_file')} is empty; give it a value, or remove the line")
        if not value.isprintable():
            raise ConfigError(f"{where.removesuffix('_file')} contains control characters or invisible ones")
        return _sendable(value, where.removesuffix("_file"))
    if file is None:
        return None
    if not file.strip():
        raise ConfigError(f"{where} is empty; name a file, or remove the line")
    try:
        text = read_limited(expanded_path(file), _MAX_SECRET).decode("utf-8").strip()
    except (OSError, ValueError, FileTooLarge) as error:
        raise ConfigError(f"{where}: {file}: cannot be read: {error}") from error
    if not text:
        raise ConfigError(f"{where}: {file} is empty")
    if not text.isprintable():
        raise ConfigError(f"{where}: {file} does not hold a key: one line of plain text is expected")
    return _sendable(text, f"{where}: {file}")


def _sendable(text: str, where: str) -> str:
    """The secret, which headers can carry."""
    if not text.isascii():
        raise ConfigError(f"{where} {NOT_SENDABLE}")
    return text
