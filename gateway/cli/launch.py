"""Starts `up`, `gateway` and `supervisor`: configuration, log and live view, then the program; returns the exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

from hostler.gateway.cli import run
from hostler.gateway.cli.logging import Format, LogHandler, configure_logging
from hostler.gateway.cli.start_options import FAILED, INTERRUPTED, USAGE, StartCommand, StartOptions
from hostler.gateway.config import ConfigError, Configuration, find_file, read

if TYPE_CHECKING:  # not loaded without a terminal
    from hostler.gateway.cli.live import LiveView

logger = logging.getLogger(__name__)

_PROGRAMS: Mapping[StartCommand, Callable[[Configuration, LiveView | None], int]] = {
    "up": run.up,
    "gateway": run.gateway,
    "supervisor": run.supervisor,
}


def launch(options: StartOptions) -> int:
    """Run the program until it ends. Reports on standard error what keeps it from running."""
    try:
        configuration = read(find_file(options.config))
    except ConfigError as error:
        return _refuse(str(error))
    settings = configuration.settings.gateway.logging
    form: Format = options.log_format.value if options.log_format else "plain" if options.plain else settings.format
    log = configure_logging(options.log_level.value if options.log_level else settings.level, form)
    try:
        view = _live_view(log) if form == "auto" and not options.plain and _can_show_view(sys.stdout) else None
        return _PROGRAMS[options.command](configuration, view)
    except run.CannotRun as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        logger.critical("unhandled exception, exiting", exc_info=True)
        return FAILED
    finally:
        log.close()


def _can_show_view(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _live_view(log: LogHandler) -> LiveView:
    from hostler.gateway.cli.live import LiveView

    return LiveView(log)


def _refuse(message: str) -> int:
    sys.stderr.write(f"hostler: {message}\n")
    return USAGE
