"""From a wish to run something to its exit code: configuration, log and live view are made ready, then it runs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

from hostler.gateway import config as settings
from hostler.gateway.cli import logging as loglines
from hostler.gateway.cli import run
from hostler.gateway.cli.start_options import FAILED, INTERRUPTED, USAGE, Command, Start
from hostler.gateway.config import Configuration

if TYPE_CHECKING:  # a process without a terminal does without
    from hostler.gateway.cli.live import Live

_PROGRAMS: Mapping[Command, Callable[[Configuration, Live | None], int]] = {
    "up": run.up,
    "gateway": run.gateway,
    "supervisor": run.supervisor,
}


def launch(start: Start) -> int:
    """Run it until it ends. What keeps it from running is told in one line on standard error."""
    try:
        given = settings.read(settings.find_file(start.config))
    except settings.ConfigError as error:
        return _refuse(str(error))
    wanted = given.settings.gateway.logging
    form: loglines.Form = start.log_format.value if start.log_format else "plain" if start.plain else wanted.format
    handler = loglines.set_up(start.log_level.value if start.log_level else wanted.level, form)
    watched = form == "auto" and not start.plain and _can_show_more_than_lines(sys.stdout)
    try:
        return _PROGRAMS[start.command](given, _live_view(handler) if watched else None)
    except run.CannotRun as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        # A service that ends so has to say in its log where, whatever its form.
        logging.getLogger("hostler").critical("it ends because of a mistake of its own", exc_info=True)
        return FAILED


def _can_show_more_than_lines(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _live_view(handler: loglines.Handler) -> Live:
    from hostler.gateway.cli.live import Live

    return Live(handler)


def _refuse(message: str) -> int:
    sys.stderr.write(f"hostler: {message}\n")
    return USAGE
