"""What every command has in common: its options, its exit codes, and how it ends when it cannot do what it should."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hostler.gateway.cli.start_options import CONFIG
from hostler.gateway.cli.start_options import FAILED as FAILED
from hostler.gateway.cli.start_options import INTERRUPTED as INTERRUPTED
from hostler.gateway.cli.start_options import REFUSED as REFUSED
from hostler.gateway.cli.start_options import UNREACHABLE as UNREACHABLE
from hostler.gateway.cli.start_options import USAGE as USAGE

if TYPE_CHECKING:
    from hostler.gateway.config import Configuration


def complete_model(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The configured names and aliases that begin like this, each with a word about it. Never fails, never prints."""
    parameters: dict[str, Any] = context.params
    try:
        from hostler.gateway import config as settings

        profiles = settings.read(settings.find_file(parameters.get("config"))).profiles
    except Exception:  # what is wrong with the file is told by the command itself, not in the middle of typing
        return []
    named = set(parameters.get("names") or ())
    found = []
    for profile in profiles:
        about = profile.description or f"{profile.context} tokens"
        found.append((profile.name, about))
        found += [(alias, f"is {profile.name}") for alias in profile.aliases]
    return [(name, about) for name, about in found if name.startswith(incomplete) and name not in named]


#: As `hostler --help` ends.
EXIT_CODES = (
    "Exit codes: 0 done, 1 it failed, 2 wrong usage, configuration or name, 3 no gateway answers, "
    "4 it wants another key, 130 interrupted."
)


ConfigOption = Annotated[
    str | None,
    typer.Option(*CONFIG.names, metavar="FILE", help="Else HOSTLER_CONFIG, ./hostler.yaml, /etc/hostler/hostler.yaml."),
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


def say(text: str, *, err: bool = False) -> None:
    """Print it, line by line, without what would move the cursor: part of it may be told by others."""
    from hostler.gateway.events import printable

    typer.echo("\n".join(printable(line, 10_000) for line in text.split("\n")), err=err)


def fail(message: str, code: int) -> NoReturn:
    """End with one sentence on standard error, which says what to do."""
    say(f"hostler: {message}", err=True)
    raise typer.Exit(code)


def configuration(config: str | None) -> Configuration:
    """The configuration that a command was given, or finds."""
    from hostler.gateway import config as settings

    try:
        return settings.read(settings.find_file(config))
    except settings.ConfigError as error:
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
