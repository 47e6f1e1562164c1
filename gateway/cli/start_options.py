"""The options of `up`, `gateway` and `supervisor`, and a reader for their plain forms; and the exit codes.

The table `OPTIONS` is the only definition: typer's commands are built from it as well. typer gives help, completion and
error messages, but costs a service more time and memory than its own start, so it is left out when arguments are plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, Literal, get_args

import msgspec

FAILED = 1
USAGE = 2
UNREACHABLE = 3
UNAUTHORIZED = 4
INTERRUPTED = 130


StartCommand = Literal["up", "gateway", "supervisor"]


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class LogFormat(StrEnum):
    auto = "auto"
    plain = "plain"
    json = "json"


class StartOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, and how. Options that were not given are `None` or false. `paths` are models and folders of models."""

    command: StartCommand
    paths: tuple[str, ...] = ()
    config: str | None = None
    plain: bool = False
    log_level: LogLevel | None = None
    log_format: LogFormat | None = None
    listen: str | None = None
    key: str | None = None
    save: bool = False


class OptionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An option: its field of `StartOptions`, its names, and the type of its value; a `bool` is a flag. `commands` have it."""

    field: str
    names: tuple[str, ...]
    kind: type[str] | type[bool]
    help: str
    metavar: str | None = None
    commands: tuple[StartCommand, ...] = get_args(StartCommand)


CONFIG: Final = OptionSpec(
    field="config",
    names=("--config", "-c"),
    kind=str,
    help="Configuration file. Default: $HOSTLER_CONFIG, ./hostler.yaml, /etc/hostler/hostler.yaml.",
    metavar="FILE",
)
OPTIONS: Final = (
    CONFIG,
    OptionSpec(field="plain", names=("--plain",), kind=bool, help="Log plain lines instead of showing a live view."),
    OptionSpec(
        field="log_level", names=("--log-level",), kind=LogLevel, help="Log level. Default: gateway.logging.level."
    ),
    OptionSpec(
        field="log_format", names=("--log-format",), kind=LogFormat, help="Log format. Default: gateway.logging.format."
    ),
    OptionSpec(
        field="listen",
        names=("--listen",),
        kind=str,
        help="Address to listen on, instead of gateway.listen.",
        metavar="HOST:PORT",
        commands=("up", "gateway"),
    ),
    OptionSpec(
        field="key",
        names=("--key",),
        kind=str,
        help="API key that clients need, besides those of the key file.",
        metavar="KEY",
        commands=("up", "gateway"),
    ),
    OptionSpec(
        field="save",
        names=("--save",),
        kind=bool,
        help="Write the models found as profiles to the configuration file, else to hostler.yaml.",
        commands=("up",),
    ),
)

_BY_NAME: Final = {name: option for option in OPTIONS for name in option.names}


def read_plain(arguments: Sequence[str]) -> StartOptions | None:
    """Read a start command whose options are written plainly. `None` for everything else, valid or not."""
    if not arguments or arguments[0] not in get_args(StartCommand):
        return None
    given: dict[str, Any] = {"command": arguments[0]}
    paths: list[str] = []
    words = iter(arguments[1:])
    for word in words:
        if arguments[0] == "up" and word and not word.startswith("-"):
            paths.append(word)
            continue
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        option = _BY_NAME.get(name)
        if option is None or option.field in given or arguments[0] not in option.commands:
            return None
        if option.kind is bool:
            if equals:
                return None
            given[option.field] = True
            continue
        value = value if equals else next(words, "")
        if not value or value.startswith("-"):
            return None
        try:
            given[option.field] = option.kind(value)
        except ValueError:
            return None
    return StartOptions(**given, paths=tuple(paths))
