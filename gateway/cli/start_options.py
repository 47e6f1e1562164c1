"""What is typed to run something: its options, declared once, and read here as far as they are said in the plainest way.

All else is read by the command line's library, which is also who helps, completes and says what is wrong. To load it
costs a service more than its own start does.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal, get_args

import msgspec

FAILED = 1
USAGE = 2
UNREACHABLE = 3
REFUSED = 4
INTERRUPTED = 130


Command = Literal["up", "gateway", "supervisor"]


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class LogFormat(StrEnum):
    auto = "auto"
    plain = "plain"
    json = "json"


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What is to run, and how; an option that was not given is `None`, or off."""

    command: Command
    config: str | None = None
    plain: bool = False
    log_level: LogLevel | None = None
    log_format: LogFormat | None = None


class Option(msgspec.Struct, frozen=True):
    """An option of all that runs: its field of `Start`, what is typed, and what its value has to be; a `bool` has none."""

    field: str
    names: tuple[str, ...]
    kind: type[str] | type[bool]


CONFIG = Option("config", ("--config", "-c"), str)
PLAIN = Option("plain", ("--plain",), bool)
LOG_LEVEL = Option("log_level", ("--log-level",), LogLevel)
LOG_FORMAT = Option("log_format", ("--log-format",), LogFormat)

_OPTIONS = {name: option for option in (CONFIG, PLAIN, LOG_LEVEL, LOG_FORMAT) for name in option.names}


def read_start(arguments: Sequence[str]) -> Start | None:
    """What these words plainly start. `None` if somebody else has to read them: they may be right all the same."""
    if not arguments or arguments[0] not in get_args(Command):
        return None
    given: dict[str, Any] = {"command": arguments[0]}
    words = iter(arguments[1:])
    for word in words:
        name, glued, value = word.partition("=") if word.startswith("--") else (word, "", "")
        option = _OPTIONS.get(name)
        if option is None or option.field in given:
            return None
        if option.kind is bool:
            if glued:
                return None
            given[option.field] = True
            continue
        value = value if glued else next(words, "")
        if not value or value.startswith("-"):
            return None
        try:
            given[option.field] = option.kind(value)
        except ValueError:
            return None
    return Start(**given)
