"""The command line: arguments in, a command run, an exit code out. What a command does stands elsewhere.

Exit codes: 0 done · 1 it failed · 2 wrong usage or configuration · 3 no gateway answers · 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

if TYPE_CHECKING:
    from hostler.gateway.backends.doctor import Desk
    from hostler.gateway.exchange import Scope
    from hostler.gateway.settings import Configuration

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_GATEWAY = 3

app = typer.Typer(
    name="hostler",
    help="An always-on LLM gateway: one address, many models, every client.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)
profiles_app = typer.Typer(
    help="Change the profiles in a configuration file.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(keys_app, name="keys")
app.add_typer(profiles_app, name="profiles")


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class KeyScope(StrEnum):
    infer = "infer"
    read = "read"
    operate = "operate"


ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="Else HOSTLER_CONFIG, ./hostler.yaml, /etc/hostler/hostler.yaml."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The gateway to ask; else the first of gateway.listen.")
]
LevelOption = Annotated[LogLevel, typer.Option("--log-level", help="How much is logged to standard error.")]


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
def up(config: ConfigOption = None, log_level: LevelOption = LogLevel.info) -> None:
    """Run gateway and supervisor in one process. Without a file: a small real model, ready to chat."""
    from hostler.gateway import running

    _run(running.up, config, log_level)


@app.command()
def gateway(config: ConfigOption = None, log_level: LevelOption = LogLevel.info) -> None:
    """Run the gateway alone; supervisors and other servers are its backends."""
    from hostler.gateway import running

    _run(running.gateway, config, log_level)


@app.command()
def supervisor(config: ConfigOption = None, log_level: LevelOption = LogLevel.info) -> None:
    """Run the supervisor alone, on a machine with a GPU, for gateways elsewhere."""
    from hostler.gateway import running

    _run(running.supervisor, config, log_level)


@app.command()
def check(
    file: Annotated[str | None, typer.Argument(metavar="[FILE]", help="The configuration file to check.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration file without running anything."""
    configuration = _configuration(file)
    where = str(configuration.path) if configuration.path else "no file: the shipped defaults"
    names = [profile.name for profile in configuration.profiles]
    if as_json:
        _print_json(
            {"file": where, "valid": True, "profiles": names, "backends": list(configuration.settings.backends)}
        )
    else:
        typer.echo(f"{where}: valid; {len(names)} profiles: {', '.join(names)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for completion in editors."""
    from hostler.gateway.settings import Settings
    from hostler.profiles.document import schema as describe

    _print_json(describe(Settings))


@app.command()
def models(config: ConfigOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """List the configured models, where their files are, and what runs if a gateway answers."""
    from hostler.gateway.terminal import inspecting

    configuration = _configuration(config)
    try:
        rows = inspecting.models(configuration, inspecting.ask_quietly(configuration, url))
    except inspecting.NoGateway as error:
        _fail(str(error), EXIT_NO_GATEWAY)
    if as_json:
        _print_json(rows)
    else:
        _table(("MODEL", "STATE", "CONTEXT", "SLOTS", "ALIASES", "FILE"), inspecting.model_columns(rows))


@app.command()
def status(config: ConfigOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show what the running gateway is doing."""
    from hostler.gateway.terminal import inspecting

    try:
        answer = inspecting.ask(_configuration(config), url)
    except inspecting.NoGateway as error:
        _fail(str(error), EXIT_NO_GATEWAY)
    if as_json:
        _print_json(answer)
        return
    typer.echo(f"hostler {answer['version']}, active model: {answer['active'] or 'none'}")
    _table(("HOST", "SUPERVISOR", "SERVING", "WAITING"), inspecting.host_columns(answer))
    typer.echo()
    _table(("MODEL", "STATE", "CONTEXT", "SLOTS", "NOTE"), inspecting.status_columns(answer))


@app.command()
def pull(
    names: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="All, if none is named.")] = None,
    config: ConfigOption = None,
) -> None:
    """Fetch the files of models, so that the first request does not wait for a download."""
    from hostler.gateway.terminal import fetching

    configuration = _configuration(config)
    known = {profile.name: profile for profile in configuration.profiles}
    for name in names or list(known):
        if name not in known:
            _fail(f"{name!r} is no profile; profiles are: {', '.join(known)}", EXIT_USAGE)
        try:
            path = fetching.fetch(known[name])
        except fetching.SourceError as error:
            _fail(str(error), EXIT_FAILED)
        typer.echo(f"{name}: {path}")


@app.command()
def route(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name or alias.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask nobody; only tell who would be asked.")] = False,
    local_only: Annotated[bool, typer.Option("--local-only", help="As for a request that must stay inside.")] = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell who would answer for a model, and why not the others; without --dry-run, let it say one word."""
    from hostler.gateway.backends import doctor

    desk = _desk(config, url)
    try:
        found = desk.route(model, local_only=local_only)
        if not dry_run:
            status, headers, _ = desk.say(model)
            told = {name.lower(): value for name, value in headers.items()}
            found["answer"] = {
                "status": status,
                "backend": told.get("x-hostler-backend"),
                "hop": told.get("x-hostler-hop"),
                "reason": told.get("x-hostler-reason", ""),
            }
    except doctor.GatewayRefused as error:
        _fail(str(error), EXIT_FAILED if error.there else EXIT_NO_GATEWAY)
    if as_json:
        _print_json(found)
        return
    _table(("HOP", "BACKEND", "NAME THERE", "STANDS", "NOW"), doctor.route_columns(found))
    if not dry_run:
        answer = found["answer"]
        typer.echo(
            f"answered with status {answer['status']} by {answer['backend'] or 'nobody'} {answer['reason']}".rstrip()
        )


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Else the active or the default one.")] = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send one real word through each backend of the running gateway; tell how long it took and what to mend."""
    from hostler.gateway.backends import doctor as practice

    desk = _desk(config, url)
    try:
        found = desk.route(model)
        findings = [desk.examine(found["model"], hop) for hop in found["hops"]]
    except practice.GatewayRefused as error:
        _fail(str(error), EXIT_FAILED if error.there else EXIT_NO_GATEWAY)
    if as_json:
        _print_json({"model": found["model"], "hops": findings})
    else:
        typer.echo(f"{found['model']}:")
        _table(("BACKEND", "RESULT", "TOOK", "SWITCHING", "WHAT TO DO"), practice.columns(findings))
    if not findings or not all(finding.ok for finding in findings):
        raise typer.Exit(EXIT_FAILED)


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="Whose key it is; shown in logs.")],
    scope: Annotated[
        list[KeyScope] | None,
        typer.Option("--scope", help="What it allows; may be given several times. Default: infer and read."),
    ] = None,
    priority: Annotated[
        int, typer.Option("--priority", help="Of those who wait for a model, the higher is served first.")
    ] = 0,
    local_only: Annotated[
        bool, typer.Option("--local-only", help="What is asked with it never leaves the house.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Make a key. It is shown once and kept as a hash."""
    from hostler.gateway import keys

    path = _key_file(config)
    try:
        scopes = cast("list[Scope]", [each.value for each in scope or (KeyScope.infer, KeyScope.read)])
        key = keys.add(path, name, scopes, priority=priority, local_only=local_only)
    except (keys.KeyFileError, OSError) as error:
        _fail(str(error), EXIT_FAILED)
    typer.echo(f"kept as a hash in {path}; this is the only time the key is shown:", err=True)
    typer.echo(key)


@keys_app.command("list")
def keys_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the keys by name."""
    from hostler.gateway import keys
    from hostler.gateway.terminal import inspecting

    try:
        records = keys.read(_key_file(config))
    except keys.KeyFileError as error:
        _fail(str(error), EXIT_FAILED)
    if as_json:
        _print_json([{"name": each.name, "scopes": list(each.scopes), "created": each.created} for each in records])
    else:
        _table(("NAME", "SCOPES", "CREATED"), inspecting.key_columns(records))


@keys_app.command("revoke")
def keys_revoke(name: Annotated[str, typer.Argument(help="The key's name.")], config: ConfigOption = None) -> None:
    """Forget a key; a running gateway does so within a second."""
    from hostler.gateway import keys

    path = _key_file(config)
    try:
        known = keys.revoke(path, name)
    except (keys.KeyFileError, OSError) as error:
        _fail(str(error), EXIT_FAILED)
    if not known:
        _fail(f"{path} holds no key named {name!r}", EXIT_FAILED)
    typer.echo(f"revoked {name}")


@profiles_app.command("add")
def profiles_add(
    model: Annotated[str, typer.Argument(metavar="FILE.gguf", help="A file, or hf:, https: or pypi: as in a profile.")],
    name: Annotated[str | None, typer.Option("--name", help="The profile's name; else made from the file's.")] = None,
    context: Annotated[int | None, typer.Option("--context", min=1, help="Tokens one request may have.")] = None,
    config: ConfigOption = None,
) -> None:
    """Add a profile for a model to the configuration file, keeping its comments."""
    import msgspec

    from hostler.gateway import settings
    from hostler.profiles.document import DocumentError
    from hostler.profiles.schema import ProfileEntry
    from hostler.profiles.store import add_profile

    if not model.startswith(("hf:", "https:", "pypi:")):
        file = Path(model).expanduser().resolve()
        if not file.is_file():
            _fail(f"{file} is not there", EXIT_FAILED)
        model = str(file)
    named = name or Path(model).name.removesuffix(".gguf").lower()
    try:
        target = settings.find_file(config) or Path("hostler.yaml")
        add_profile(target, named, ProfileEntry(model=model, context=msgspec.UNSET if context is None else context))
    except (DocumentError, settings.SettingsError, OSError) as error:
        _fail(str(error), EXIT_FAILED)
    typer.echo(f"added {named} to {target}")


def _desk(config: str | None, url: str | None) -> Desk:
    from hostler.gateway.backends.doctor import Desk
    from hostler.gateway.terminal import inspecting

    return Desk(inspecting.address(_configuration(config), url), os.environ.get("HOSTLER_API_KEY"))


def _run(program: Any, config: str | None, level: LogLevel) -> None:
    from hostler.gateway import running

    configuration = _configuration(config)
    running.set_up_logging(level.value)
    try:
        code = program(configuration)
    except running.CannotRun as error:
        _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)


def _configuration(config: str | None) -> Configuration:
    from hostler.gateway import settings

    try:
        return settings.read(settings.find_file(config))
    except settings.SettingsError as error:
        _fail(str(error), EXIT_USAGE)


def _key_file(config: str | None) -> Path:
    from hostler.gateway import keys

    named = _configuration(config).settings.gateway.api_keys_file
    return Path(named).expanduser() if named else keys.default_file()


def _print_json(value: object) -> None:
    import msgspec

    json.dump(msgspec.to_builtins(value), sys.stdout, indent=2)
    sys.stdout.write(os.linesep)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as they need to be, the last one cut to the terminal's width."""
    import shutil

    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    room = shutil.get_terminal_size((100, 24)).columns
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        typer.echo(text if not sys.stdout.isatty() or len(text) <= room else text[: room - 1] + "…")


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"hostler: {message}", err=True)
    raise typer.Exit(code)
