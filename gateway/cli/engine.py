"""`hostler engine`: the llama-servers of this machine, which of them runs the models, and newer ones beside them."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import psutil
import typer

from hostler.gateway.cli.formatting import Column, print_table
from hostler.gateway.cli.options import (
    ConfigOption,
    JsonOption,
    cannot_write,
    echo,
    fail,
    print_json,
    read_configuration,
)
from hostler.gateway.cli.start_options import FAILED, INTERRUPTED, USAGE
from hostler.gateway.cli.stop_signals import ended_by_signals
from hostler.profiles.file_reading import home_path, real_path

if TYPE_CHECKING:
    from hostler.gateway.config import Configuration
    from hostler.profiles.engines import Engine
    from hostler.supervisor.engine_builds import EngineBuild
    from hostler.supervisor.engine_inventory import KnownEngine
    from hostler.supervisor.llama_program import LlamaProgram

engine_app = typer.Typer(
    help="List, choose and update the llama-server that runs the models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

#: A downloaded archive may be so large: those with CUDA's or ROCm's libraries have about a tenth of it.
_MAX_DOWNLOAD = 8 * 1024**3
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")

_COLUMNS = (
    Column("ENGINE", named=True),
    Column("BUILD"),
    Column("DEVICES"),
    Column("USED BY", drop=1),
    Column("PROGRAM", named=True, drop=2),
)

_FolderOption = Annotated[
    str | None,
    typer.Option(
        "--folder",
        metavar="DIR",
        help="Folder of installed engines. Default: engines in the state directory; /opt/hostler/engines for a service.",
    ),
]


@engine_app.command("list")
def engine_list(config: ConfigOption = None, folder: _FolderOption = None, as_json: JsonOption = False) -> None:
    """List the llama-servers, with their builds and devices.

    Those that are configured, on the PATH or installed. The default one, for profiles that name no engine, has a *.
    Each is run briefly, to ask what it is.
    """
    from hostler.supervisor.engine_builds import installed_builds
    from hostler.supervisor.engine_inventory import known_engines

    found = read_configuration(config, scan=True)
    builds = installed_builds(_folder(found, folder))
    engines = known_engines(found.settings.supervisor, found.profiles, _definitions(found), builds)
    if as_json:
        print_json([_as_json(each) for each in engines])
        return
    if not engines:
        fail("no llama-server is known; `hostler engine update ARCHIVE` installs one", FAILED)
    print_table(_COLUMNS, [_row(each) for each in engines])
    for each in engines:
        if each.failure:
            echo(f"{each.name} cannot be used: {each.failure}")


@engine_app.command("use")
def engine_use(
    engine: Annotated[
        str,
        typer.Argument(
            metavar="ENGINE",
            help="Name from `hostler engine list`, program, folder that contains one, or command line in quotes.",
        ),
    ],
    config: ConfigOption = None,
    folder: _FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the engine of profiles that name none.

    The rest of the configuration file stays, comments included. The engine is run first: what does not run is refused.
    Takes effect when Hostler is started again.
    """
    found = read_configuration(config)
    _report(found, *_set_engine(found, _resolve(found, engine, _folder(found, folder))), as_json=as_json)


@engine_app.command("update")
def engine_update(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="ARCHIVE...",
            help="Release archive or folder with a llama-server, or an https address; then those of libraries for it.",
        ),
    ],
    sha256: Annotated[
        list[str] | None, typer.Option("--sha256", metavar="HEX", help="Checksum of the archive, once for each.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the build. Default: from the archive.")] = None,
    config: ConfigOption = None,
    folder: _FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Install a llama-server beside the others, and use it.

    What does not run is not installed. The old one stays, and `hostler engine use` goes back to it. Engines that are
    running are not touched. Nothing is downloaded unless ARCHIVE is an address.
    """
    from hostler.profiles.sources import SourceError
    from hostler.supervisor.contract import SupervisorError
    from hostler.supervisor.engine_builds import archive_name, check_name, install_build
    from hostler.supervisor.engine_command import engine_preset
    from hostler.supervisor.engine_staging import staging_folder

    checksums = _checksums(sources, sha256)
    found = read_configuration(config)
    target = _folder(found, folder)
    if name is not None and (name in found.settings.engines or engine_preset(name) is not None):
        fail(f"{name} is the name of another engine; choose another one with --name", USAGE)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if name is not None or not home_path(sources[0]).is_dir():
            check_name(target, name or archive_name(Path(urlsplit(sources[0]).path).name))  # before any download
        with ended_by_signals(), staging_folder(target) as temporary:
            archives = []
            for index, source in enumerate(sources):
                own = temporary / str(index)  # two addresses may end in the same name
                own.mkdir()
                archives.append(_archive(source, own, checksums.get(source)))
            build = install_build(archives[0], target, beside=archives[1:], name=name, arguments=_arguments(found))
    except SourceError as error:
        fail(f"{error}; nothing was changed", FAILED)
    except SupervisorError as error:
        fail(f"{error.failure.message}; nothing was changed", FAILED)
    except OSError as error:
        cannot_write(target, error)
    except KeyboardInterrupt:
        fail("interrupted; nothing was changed", INTERRUPTED)
    if not as_json:
        echo(f"installed {build.name}: {build.program}")
    _report(found, *_set_engine(found, _command(found, build.program), build), as_json=as_json)


@engine_app.command("remove")
def engine_remove(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of an installed build, from `hostler engine list`.")
    ],
    config: ConfigOption = None,
    folder: _FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove an installed llama-server.

    One that the configuration uses, or that is running, is kept. Programs that were not installed with `hostler engine
    update` are never removed.
    """
    from hostler.supervisor.engine_builds import installed_builds
    from hostler.supervisor.engine_staging import remove_build

    found = read_configuration(config)
    target = _folder(found, folder)
    names = {build.name for build in installed_builds(target)}
    if name not in names:
        known = f"installed are: {', '.join(sorted(names))}" if names else "none is installed"
        fail(f"{name} is no installed build in {target}; {known}", USAGE)
    place = real_path(target / name)
    if users := [who for who, program in _programs(found) if real_path(program).is_relative_to(place)]:
        fail(f"{name} is used by {', '.join(users)}; choose another one first, with `hostler engine use`", FAILED)
    if running := _running_below(place):
        fail(f"{name} is running, as process {', '.join(map(str, running))}; unload its models first", FAILED)
    try:
        with ended_by_signals():
            remove_build(target, name)
    except OSError as error:
        cannot_write(place, error)
    except KeyboardInterrupt:
        if place.exists():
            raise typer.Exit(INTERRUPTED) from None
        # It is out of its place; what is left of it is removed by the next command.
    print_json({"removed": name}) if as_json else echo(f"removed {name}")


def _programs(found: Configuration) -> list[tuple[str, Path]]:
    """The programs of the configuration's engines, and what names each."""
    settings = found.settings
    words: list[tuple[str, Sequence[object]]] = [
        (f"engines.{name}", engine.command) for name, engine in _definitions(found).items()
    ]
    if settings.supervisor.engine is not None:
        words.append(("supervisor.engine", shlex.split(settings.supervisor.engine)))
    words += [(f"profiles.{each.name}", shlex.split(each.engine)) for each in found.profiles if each.engine is not None]
    return [(who, home_path(command[0])) for who, command in words if command and isinstance(command[0], str)]


def _running_below(folder: Path) -> list[int]:
    """The processes whose programs are in a folder, as far as this user may know."""
    found = []
    for process in psutil.process_iter(["exe"]):
        if (program := process.info["exe"]) and Path(program).is_relative_to(folder):
            found.append(process.pid)
    return found


def _checksums(sources: list[str], sha256: list[str] | None) -> dict[str, str]:
    """The checksums of the archives, in lower case; empty if none are given. Exits if some are."""
    if not sha256:
        return {}
    if any(not _SHA256.fullmatch(each) for each in sha256):
        fail("--sha256 expects 64 hexadecimal digits", USAGE)
    if len(sha256) != len(sources):
        fail(f"--sha256 is needed once for each of the {len(sources)} archives, or not at all", USAGE)
    return {source: each.lower() for source, each in zip(sources, sha256, strict=True)}


def _archive(source: str, temporary: Path, sha256: str | None) -> Path:
    """The archive or folder, downloaded if it is an address. Raises `SourceError`."""
    from hostler.gateway.cli.downloads import download_archive
    from hostler.profiles.sources import SourceError

    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source):
        return download_archive(source, temporary, sha256=sha256, limit=_MAX_DOWNLOAD)
    path = home_path(source).absolute()
    if not path.exists():
        fail(f"{source}: no such file or folder", USAGE)
    if sha256 is not None:
        if path.is_dir():
            fail("--sha256 is for archives, not for folders", USAGE)
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != sha256:
            raise SourceError(f"{source} has the SHA-256 {actual}, expected {sha256}")
    return path


def _folder(found: Configuration, given: str | None) -> Path:
    from hostler.gateway.config import engines_folder

    return engines_folder(found.path) if given is None else home_path(given).absolute()


def _definitions(found: Configuration) -> dict[str, Engine]:
    """The engines that the configuration file defines."""
    from hostler.profiles.engine_presets import PRESETS
    from hostler.profiles.engines import resolve_engines

    settings = found.settings
    table = resolve_engines(settings.engines, PRESETS, settings.macros, errors=[])
    return {name: table.engines[name] for name in settings.engines if name in table.engines}


def _resolve(found: Configuration, text: str, folder: Path) -> str:
    """What `supervisor.engine` has to be for an engine. Exits if there is none."""
    from hostler.supervisor.engine_builds import find_program, installed_builds
    from hostler.supervisor.engine_command import engine_preset

    if not text.strip():
        fail("name an engine, a program or a folder with one; `hostler engine list` shows those that are known", USAGE)
    if text in found.settings.engines or engine_preset(text) is not None:
        return text
    builds = {build.name: build.program for build in installed_builds(folder)}
    if text in builds:
        return _command(found, builds[text])
    path = home_path(text)
    if path.is_dir():
        if (program := find_program(path.absolute())) is None:
            fail(f"{text}: there is no llama-server in that folder", FAILED)
        return _command(found, program)
    if path.is_file():
        return _command(found, path.absolute())
    try:
        words = shlex.split(text)
    except ValueError as error:
        fail(f"{text}: {error}", USAGE)
    place = shutil.which(home_path(words[0])) if words else None
    if place is None:
        known = ", ".join(dict.fromkeys((*found.settings.engines, *builds)))
        names = f"; engines are: {known}" if known else ""
        fail(f"{text}: there is no such engine or program{names}", USAGE)
    program = Path(place).absolute()  # a service may have another PATH
    return _command(found, program) if len(words) == 1 else shlex.join([str(program), *words[1:]])


def _command(found: Configuration, program: Path) -> str:
    """The command line of a program, with the arguments of the one that it replaces."""
    return shlex.join([str(program), *_arguments(found)])


def _arguments(found: Configuration) -> list[str]:
    """The arguments in the present `supervisor.engine`, if that is a command line."""
    from hostler.supervisor.engine_command import engine_preset

    engine = found.settings.supervisor.engine
    if engine is None or engine in found.settings.engines or engine_preset(engine) is not None:
        return []
    return shlex.split(engine)[1:]


def _set_engine(
    found: Configuration, engine: str, build: EngineBuild | None = None
) -> tuple[Path, str, LlamaProgram | None]:
    """Set `supervisor.engine`, unless that is no engine which runs, or makes mistakes. Exits in these cases.

    `build`: this has just been installed, and so was run.
    """
    from hostler.gateway.config import ConfigError, read
    from hostler.gateway.preflight import all_mistakes
    from hostler.profiles.setting_edits import with_setting
    from hostler.profiles.store import read_text, replace_text
    from hostler.profiles.yaml_config import DocumentError
    from hostler.supervisor.contract import SupervisorError

    target = real_path(found.path or Path("hostler.yaml"))
    kept = f"; {build.name} stays installed, but is not used" if build else "; nothing was changed"
    try:
        shown = _check(found, engine) if build is None else build.read
        old = read_text(target) if target.exists() else ""
        new = with_setting(old, str(target), "supervisor", "engine", engine)
        changed = read(target, texts={target: new})
        before = all_mistakes(found)
        if mistakes := [each for each in all_mistakes(changed) if each not in before]:
            fail("; ".join(mistakes) + kept, USAGE)
        replace_text(target, old, new)
    except SupervisorError as error:
        fail(f"{error.failure.message}{kept}", FAILED)
    except (ConfigError, DocumentError) as error:
        fail(f"{error}{kept}", FAILED)
    except OSError as error:
        cannot_write(target, error)
    return target, engine, shown


def _check(found: Configuration, engine: str) -> LlamaProgram | None:
    """What a llama-server says of itself; `None` for another engine. Raises `SupervisorError` if it does not run."""
    from hostler.supervisor.engine_builds import check_program
    from hostler.supervisor.engine_command import engine_preset, is_embedded, llama_server, program_of

    definition = _definitions(found).get(engine) or engine_preset(engine) or llama_server(engine)
    program = program_of(definition)
    return check_program(program) if definition.llama_server and not is_embedded(program) else None


def _report(found: Configuration, target: Path, engine: str, shown: LlamaProgram | None, *, as_json: bool) -> None:
    default = [profile.name for profile in found.profiles if profile.engine is None]
    others = [profile.name for profile in found.profiles if profile.engine is not None]
    if as_json:
        build, devices = ("", ()) if shown is None else (shown.build, shown.devices)
        print_json({"engine": engine, "build": build, "devices": devices, "file": str(target), "profiles": default})
        return
    if shown is not None:
        echo(f"build: {shown.build or 'unknown'}; devices: {', '.join(shown.devices) or 'CPU only'}")
    echo(f"{target}: supervisor.engine is now {engine}")
    if others:
        echo(f"not for {', '.join(others)}, which have an engine of their own")
    echo("takes effect when Hostler is started again; engines that are running are not touched")


def _row(engine: KnownEngine) -> tuple[str, ...]:
    return (
        f"{engine.name} *" if engine.default else engine.name,
        engine.build or "-",
        "cannot be used" if engine.failure else ", ".join(engine.devices) or "CPU only",
        ", ".join(engine.used_by) or "-",
        engine.command or "-",
    )


def _as_json(engine: KnownEngine) -> dict[str, Any]:
    return {
        "name": engine.name,
        "program": engine.command,
        "build": engine.build,
        "devices": engine.devices,
        "used_by": engine.used_by,
        "default": engine.default,
        "failure": engine.failure,
    }
