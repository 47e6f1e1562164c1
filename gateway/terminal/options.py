"""What every command has in common: its options, its exit codes, and how it ends when it cannot do what it should."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hostler.gateway.terminal.completing import complete_model

if TYPE_CHECKING:
    from hostler.gateway.settings import Configuration

FAILED = 1
USAGE = 2
UNREACHABLE = 3
REFUSED = 4
INTERRUPTED = 130

#: As `hostler --help` ends. Every code has its row in docs/operations.md.
EXIT_CODES = (
    "Exit codes: 0 done, 1 it failed, 2 wrong usage, configuration or name, 3 no gateway answers, "
    "4 it wants another key, 130 interrupted."
)


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class LogFormat(StrEnum):
    auto = "auto"
    plain = "plain"
    json = "json"


ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="Else HOSTLER_CONFIG, ./hostler.yaml, /etc/hostler/hostler.yaml."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs, one object a line.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The gateway to ask; else the first of gateway.listen.")
]
KeyFileOption = Annotated[
    str | None, typer.Option("--key-file", metavar="FILE", help="The key to show it; else HOSTLER_API_KEY.")
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model's name or alias.", autocompletion=complete_model)
]
MaybeModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="Else the active or the default one.", autocompletion=complete_model),
]
ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL]...", help="All, if none is named.", autocompletion=complete_model),
]


def fail(message: str, code: int) -> NoReturn:
    """End with one sentence on standard error, which says what to do."""
    typer.echo(f"hostler: {message}", err=True)
    raise typer.Exit(code)


def configuration(config: str | None) -> Configuration:
    """The configuration that a command was given, or finds."""
    from hostler.gateway import settings

    try:
        return settings.read(settings.find_file(config))
    except settings.SettingsError as error:
        fail(str(error), USAGE)


def print_json(value: object) -> None:
    """One value, for programs and still readable."""
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def print_json_line(value: object) -> None:
    """One value of many, at once."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()
