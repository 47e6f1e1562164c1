"""What all commands share: options, JSON output, and how they connect to a gateway and fail."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hostler.gateway.cli.start_options import CONFIG, FAILED, INTERRUPTED, USAGE

if TYPE_CHECKING:
    from hostler.gateway.cli.client import AdminTarget
    from hostler.gateway.config import Configuration

#: The last line of `hostler --help`.
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, configuration or name, 3 no gateway answers, 4 not authorised, "
    "130 interrupted."
)


def complete_model(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The configured names and aliases that begin like this, each with a description. Never fails, never prints."""
    parameters: dict[str, Any] = context.params
    try:
        from hostler.gateway.last_good import find_configuration, load

        profiles = load(find_configuration(parameters.get("config"))).profiles
    except Exception:  # the command itself reports what is wrong with the file
        return []
    named = set(parameters.get("names") or ())
    found = []
    for profile in profiles:
        found.append((profile.name, profile.description or f"{profile.context} tokens"))
        found += [(alias, f"alias of {profile.name}") for alias in profile.aliases]
    return [(name, about) for name, about in found if name.startswith(incomplete) and name not in named]


ConfigOption = Annotated[str | None, typer.Option(*CONFIG.names, metavar=CONFIG.metavar, help=CONFIG.help)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="Gateway to connect to. Default: first of gateway.listen.")
]
KeyFileOption = Annotated[
    str | None,
    typer.Option("--key-file", metavar="FILE", help="File containing the API key. Default: $HOSTLER_API_KEY."),
]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new entries.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name or alias of a model.", autocompletion=complete_model)
]
OptionalModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="Name or alias. Default: the active or default model.", autocompletion=complete_model
    ),
]
ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL", help="Names or aliases. Default: all models.", autocompletion=complete_model),
]


def echo(text: str, *, err: bool = False) -> None:
    """Print lines without control characters, since parts of them may come from elsewhere."""
    from hostler.gateway.events import printable

    typer.echo("\n".join(printable(line, 10_000) for line in text.split("\n")), err=err)


def fail(message: str, code: int) -> NoReturn:
    """Print an error and exit."""
    fail_with((message,), code)


def fail_with(messages: Iterable[str], code: int) -> NoReturn:
    """Print errors and exit."""
    for message in messages:
        echo(f"hostler: {message}", err=True)
    raise typer.Exit(code)


def cannot_write(path: Path, error: OSError) -> NoReturn:
    """Print why a file cannot be written, and exit."""
    fail(f"{error.filename or path}: {error.strerror or error}; use another file or change its permissions", FAILED)


def read_configuration(config: str | None, *, scan: bool = False) -> Configuration:
    """The configuration from the given file or the usual places, or its last good state, with a warning. Exits if there is
    neither. With `scan`, the models of the folders that it names are part of it, which takes longer."""
    from hostler.gateway.config import ConfigError
    from hostler.gateway.last_good import find_configuration, load

    finder = None
    if scan:
        from hostler.gateway.model_finder import ModelFinder

        finder = ModelFinder()
    try:
        found = load(find_configuration(config), find_models=finder)
    except ConfigError as error:
        fail_with(error.mistakes, USAGE)
    if found.errors is not None:
        for mistake in found.errors.mistakes:
            echo(f"hostler: {mistake}", err=True)
        echo(f"hostler: {found.path}: using its last good state", err=True)
    return found


@contextmanager
def failing_calls() -> Iterator[None]:
    """Exit with the error's message and code when a call fails, silently on Ctrl-C."""
    from hostler.gateway.cli.client import CallFailed

    try:
        yield
    except CallFailed as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def connect(config: str | None, url: str | None, key_file: str | None, *, status_required: bool = True) -> AdminTarget:
    """The gateway or supervisor that a command talks to, see `client.connect`. Inside `failing_calls` only."""
    from hostler.gateway.cli import client

    return client.connect(read_configuration(config), url, key_file, status_required=status_required)


def print_json(value: object) -> None:
    """Print an indented value."""
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def print_json_line(value: object) -> None:
    """Print a value on one line, at once."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()
