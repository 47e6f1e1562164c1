"""The command line: the typer app, and the commands that run a process or work on files.

Commands that call a running gateway are in `status`, `models` and `events`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, cast

import typer

from hostler.gateway.cli import (
    agents,
    backends,
    config_command,
    drain,
    engine,
    events,
    keys,
    leases,
    models,
    profiles,
    status,
)
from hostler.gateway.cli.certificate import certificate
from hostler.gateway.cli.get import get
from hostler.gateway.cli.import_command import import_configuration
from hostler.gateway.cli.options import (
    EXIT_CODES,
    ConfigOption,
    JsonOption,
    ModelsArgument,
    fail,
    fail_with,
    print_json,
    read_configuration,
)
from hostler.gateway.cli.start_options import FAILED, INTERRUPTED, OPTIONS, USAGE, StartCommand, StartOptions

app = typer.Typer(
    name="hostler",
    help="An always-on LLM gateway: one address, many models, every client.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from hostler import __version__

        typer.echo(f"hostler {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


_START_HELP: Final[dict[StartCommand, str]] = {
    "up": """Run gateway and supervisor in one process.

    With PATHs, it serves the models in them. With neither these nor a configuration file, it downloads and serves a small
    model. On a terminal, it shows a live view.
    """,
    "gateway": """Run the gateway alone.

    It forwards to supervisors and other servers, its configured backends.
    """,
    "supervisor": "Run the supervisor alone, for gateways on other machines.",
}


def _add_start_command(command: StartCommand) -> None:
    """Add a command whose options are those of `start_options.OPTIONS`."""

    def run(**options: Any) -> NoReturn:
        from hostler.gateway.cli.launch import launch

        raise typer.Exit(launch(StartOptions(command=command, **options)))

    parameters = [
        _keyword(
            option.field,
            option.kind if option.kind is bool else option.kind | None,
            typer.Option(*option.names, metavar=option.metavar, help=option.help),
            default=False if option.kind is bool else None,
        )
        for option in OPTIONS
        if command in option.commands
    ]
    if command == "up":
        help_text = "Models, or folders of models, to serve: GGUF files, with what belongs to them."
        parameters.append(
            _keyword("paths", list[str] | None, typer.Argument(metavar="PATH", help=help_text, callback=_as_tuple))
        )
    cast(Any, run).__signature__ = inspect.Signature(parameters)
    app.command(command, help=inspect.cleandoc(_START_HELP[command]))(run)


def _as_tuple(values: list[str] | None) -> tuple[str, ...]:
    return tuple(values or ())


def _keyword(name: str, kind: Any, info: Any, *, default: bool | None = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


for _start in _START_HELP:
    _add_start_command(_start)

# In the order of `hostler --help`.
_CALLING: Final[tuple[Callable[..., None], ...]] = (
    status.ps,
    status.status,
    status.models,
    backends.backends,
    models.switch,
    models.load,
    models.unload,
    models.pin,
    models.unpin,
    leases.lease,
    drain.drain,
    models.cancel,
    events.events,
    events.logs,
    status.route,
    status.doctor,
    agents.launch,
)
for _command in _CALLING:
    app.command()(_command)


@app.command()
def pull(
    names: ModelsArgument = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download model files ahead of the first request."""
    from hostler.gateway.cli.client import unknown_model
    from hostler.gateway.cli.downloads import SourceError, download

    profiles = {profile.name: profile for profile in read_configuration(config).profiles}
    by_name = {alias: profile.name for profile in profiles.values() for alias in (*profile.aliases, profile.name)}
    for name in names or ():
        if name not in by_name:
            fail(unknown_model(name, list(profiles)), USAGE)
    files = {}
    for name in [by_name[name] for name in names or profiles]:
        try:
            path = download(profiles[name])
        except SourceError as error:
            fail(str(error), FAILED)
        except KeyboardInterrupt:
            fail("interrupted; the next pull resumes the download", INTERRUPTED)
        files[name] = str(path)
        if not as_json:
            typer.echo(f"{name}: {path}")
    if as_json:
        print_json([{"name": name, "file": path} for name, path in files.items()])


@app.command()
def check(
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="Configuration file to check.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration file, and whether it could run.

    Reports every mistake: keys, addresses, secrets, engines and model files included.
    """
    from hostler.gateway.checked_config import read_checked
    from hostler.gateway.cli.views import host_limits
    from hostler.gateway.config import ConfigError, find_file
    from hostler.gateway.model_finder import ModelFinder
    from hostler.gateway.preflight import all_mistakes
    from hostler.profiles.file_reading import is_file

    try:
        if file is not None and not is_file(Path(file)):
            raise ConfigError(f"{file}: {'is a folder' if os.path.isdir(file) else 'no such file'}")  # noqa: PTH112
        found = read_checked(find_file(file or config), os.environ, all_mistakes, ModelFinder())
    except ConfigError as error:
        if as_json:
            print_json({"file": file or config, "valid": False, "error": str(error), "errors": list(error.mistakes)})
            raise typer.Exit(USAGE) from None
        fail_with(error.mistakes, USAGE)
    names = [profile.name for profile in found.profiles]
    if as_json:
        path = None if found.path is None else str(found.path)
        named = list(found.settings.backends)
        limits = {name: value for name, value, _ in host_limits(found)}
        print_json({"file": path, "valid": True, "profiles": names, "backends": named, "host_limits": limits})
        return
    where = str(found.path) if found.path else "no file, using built-in defaults"
    others = f"; backends: {', '.join(found.settings.backends)}" if found.settings.backends else ""
    typer.echo(f"{where}: valid; profiles: {', '.join(names) or 'none'}{others}")
    for name, value, places in host_limits(found):
        typer.echo(f"{name}: {value:g} applies {places}")


@app.command()
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="Accepted for consistency.", hidden=True)] = False,
) -> None:
    """Print the JSON Schema of the configuration file."""
    from hostler.gateway.settings import Settings
    from hostler.profiles.yaml_config import schema as describe

    print_json(describe(Settings))


app.command()(get)
app.command("import")(import_configuration)
app.command()(certificate)
app.add_typer(keys.keys_app, name="keys")
app.add_typer(config_command.config_app, name="config")
app.add_typer(profiles.profiles_app, name="profiles")
app.add_typer(engine.engine_app, name="engine")
