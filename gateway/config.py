"""The configuration file as typed values, and the rules that types cannot express. Parts get theirs through
constructors."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UnsetType

from hostler.gateway.backend_settings import BackendSettings, backend_errors
from hostler.gateway.cluster_settings import ClusterSettings, cluster_mistakes
from hostler.gateway.file_settings import path_mistakes, with_absolute_paths
from hostler.gateway.gateway_settings import BreakerSettings, GatewaySettings, LibrarySettings
from hostler.gateway.network_rules import host_mistake, origin_mistake, proxy_mistake, root_path_mistake
from hostler.gateway.shared_files import host_names, shared_file
from hostler.gateway.state_files import service_directory, state_file
from hostler.gateway.wake_settings import wake_mistakes
from hostler.profiles.engines import EngineEntry, Macro
from hostler.profiles.file_reading import FileTooLarge, expanded_path, read_limited
from hostler.profiles.library import Library, optional_text, read_library
from hostler.profiles.presets import Preset
from hostler.profiles.request_rules import RequestRules
from hostler.profiles.schema import Profile, ProfileEntry
from hostler.profiles.shared_profiles import parse_shared_profiles
from hostler.profiles.store import SCAN_PATH, FindModels, SharedSection, load_profiles, read_text, scan_folders
from hostler.profiles.yaml_config import NOT_SENDABLE, Document, DocumentError, KeyPath, parse
from hostler.supervisor.config import HostLimits, SleepSettings, SupervisorSettings


class VariantSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another name for a model, with changes of its requests."""

    model: str
    """The model that the variant stands for: a profile, an alias, or a model of a backend."""
    description: str | None = None
    """Description of the variant in lists of models. Default: the model's."""
    request: RequestRules = RequestRules()
    """Changes of all requests that use this name."""


_SCAN_SCHEMA: Mapping[str, Any] = {
    "description": "Folders whose models are profiles, too, while Hostler runs.",
    "type": "array",
    "items": {"type": "string"},
}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. All sections are optional."""

    gateway: GatewaySettings = GatewaySettings()
    """The server for clients: where it listens, who may use it, and how it queues, retries and logs."""
    backends: Mapping[str, BackendSettings] = {}
    """What answers besides the models of this machine, by names of your choice: supervisors on other machines, and
    servers that speak a protocol."""
    breaker: BreakerSettings = BreakerSettings()
    """When a failing backend is left out, and for how long."""
    supervisor: SupervisorSettings = SupervisorSettings()
    """How engines are run on this machine."""
    engines: Mapping[str, EngineEntry] = {}
    """Programs that run models, besides the presets, by names of your choice."""
    macros: Mapping[str, Macro] = {}
    """Macros for all engines and profiles: what `${name}` stands for, a text or several words."""
    profiles: Annotated[
        Mapping[str, ProfileEntry], msgspec.Meta(extra_json_schema={"properties": {"scan": _SCAN_SCHEMA}})
    ] = {}
    """The models of this machine and how they are run, by the names that clients use. `scan` lists folders whose models
    are profiles, too."""
    variants: Mapping[str, VariantSettings] = {}
    """Further names for models, whose requests are changed."""
    manifest: str | None = None
    """A file with further profiles, with or without a `profiles:` key. A relative path starts at the configuration
    file. `base` may name a profile of the other file."""
    cluster: ClusterSettings | None = None
    """The store that this gateway shares with others. Left out: it works by itself."""


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
    are the limits of a host's queue and switches that the file sets, without defaults. `scan` are the folders in which
    models are looked for, `shared` what the cluster's members share. `texts` are the files that were read with their contents, `None` for one that does not exist.
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
    scan: tuple[Path, ...] = ()
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
        scan=scan,
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
    broken = [each for each in _broken_rules(settings, document) if each.path not in known]
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
        written = _section(_section(document, "gateway"), section)
        for name in names:
            if name in written:
                values[name] = getattr(getattr(settings, section), name)
    return HostLimits(**values)


def _section(document: Any, name: str) -> Mapping[str, Any]:
    found = document.get(name) if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


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


def engines_folder(path: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Where `hostler engine update` installs: below /opt for the service's configuration file, since the service runs as
    another user, else in the user's state directory."""
    if path is None or path.absolute() != _SYSTEM_FILE:
        return state_file("engines", environ)
    return path.with_name("engines") if sys.platform == "win32" else Path("/opt/hostler/engines")


_NETWORK_RULES: Mapping[str, Callable[[str], str | None]] = {
    "allowed_hosts": host_mistake,
    "cors_origins": origin_mistake,
    "trusted_proxies": proxy_mistake,
}


def _broken_rules(settings: Settings, document: Document) -> Iterator[DocumentError]:
    """The errors about rules that types cannot express."""
    yield from document.secret_errors()
    # Backends that could not be read count as well: they have errors of their own.
    known = list(dict.fromkeys((*settings.backends, *_section(document.value, "backends"), LOCAL)))
    yield from _unknown_backends(document, ("gateway", "chain"), settings.gateway.chain, known)
    for name, backend in settings.backends.items():
        if name == LOCAL:
            message = "this name is reserved for the supervisor of `hostler up`; use another one"
            yield document.error(("backends", name), message)
        yield from backend_errors(document, name, backend)
    for name, variant in settings.variants.items():
        if variant.model in settings.variants:
            yield document.error(("variants", name, "model"), f"{variant.model} is a variant itself; name its model")
        for steps, message in variant.request.mistakes():
            yield document.error(("variants", name, "request", *steps), message)
    if settings.backends:  # a machine that only runs a supervisor has none
        for profile, entry in settings.profiles.items():
            yield from _unknown_backends(document, ("profiles", profile, "chain"), entry.chain or (), known)
    for index, text in enumerate(settings.gateway.api_keys):
        if not is_plain_key(text):
            yield document.error(("gateway", "api_keys", index), NO_KEY)
    endpoint = settings.gateway.tracing.endpoint
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        yield document.error(
            ("gateway", "tracing", "endpoint"), f"{endpoint!r} must be the full URL, http://.../v1/traces"
        )
    for name, check in _NETWORK_RULES.items():
        for index, text in enumerate(getattr(settings.gateway, name)):
            if (mistake := check(text)) is not None:
                yield document.error(("gateway", name, index), mistake)
    if (mistake := root_path_mistake(settings.gateway.root_path)) is not None:
        yield document.error(("gateway", "root_path"), mistake)
    for index, text in enumerate(settings.gateway.switching.loaded_only):
        try:
            re.compile(text)
        except re.error as error:
            yield document.error(("gateway", "switching", "loaded_only", index), f"is no regular expression: {error}")
    if settings.cluster is not None:
        for name, mistake in cluster_mistakes(settings.cluster):
            yield document.error(("cluster", name), mistake)
        if settings.cluster.wake is not None:
            for name, mistake in wake_mistakes(settings.cluster.wake):
                yield document.error(("cluster", "wake", name), mistake)
    for key, mistake in path_mistakes(settings):
        yield document.error(key, mistake)
    for index, listen in enumerate(settings.gateway.listen):
        yield from _address_errors(document, ("gateway", "listen", index), listen)
    yield from _address_errors(document, ("supervisor", "listen"), settings.supervisor.listen)
    if settings.supervisor.sleep is not None:
        yield from _sleep_errors(document, settings.supervisor.sleep)


def _unknown_backends(
    document: Document, path: KeyPath, chain: tuple[str, ...] | UnsetType | None, known: Sequence[str]
) -> Iterator[DocumentError]:
    for index, name in enumerate(chain or ()):
        if name not in known:
            yield document.error((*path, index), f"{name!r} is not a backend; backends are: {', '.join(known)}")


def _address_errors(document: Document, path: KeyPath, text: str) -> Iterator[DocumentError]:
    try:
        parse_address(text)
    except ValueError as error:
        yield document.error(path, str(error))


#: Why a text is no API key.
NO_KEY = "is no key; a key is one word of letters, digits and signs"


def is_plain_key(text: str) -> bool:
    """Whether clients can send this text as their key."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


#: The name in the chain of the supervisor that runs in the gateway's own process.
LOCAL = "local"


def parse_address(text: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port` or `:port` (all addresses) as host and port; of a Unix socket its path, and 0.

    Raises `ValueError`.
    """
    if text.startswith("unix:"):
        path = expanded_path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise ValueError(
                f"{text!r} is not the path of a socket; write it in full, e.g. unix:/run/hostler/gateway.sock"
            )
        return str(path), 0
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise ValueError(f"{text!r} is not an address; write host:port, e.g. 127.0.0.1:8000")
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)


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


def _sleep_errors(document: Document, sleep: SleepSettings) -> Iterator[DocumentError]:
    path = ("supervisor", "sleep")
    if (sleep.command is None) is not sleep.suspend:
        yield document.error(path, "set either `command` or `suspend: true`")
        return
    try:
        empty = not sleep.argv
    except ValueError as error:
        yield document.error((*path, "command"), f"{sleep.command!r}: {error}")
        return
    if empty:
        yield document.error((*path, "command"), "the command is empty")
