"""Starts `up`, `gateway` and `supervisor`: configuration, log and live view, then the program; returns the exit code."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol, TextIO

from hostler.gateway.cli import run
from hostler.gateway.cli.logging import Format, LogHandler, configure_logging
from hostler.gateway.cli.start_options import FAILED, INTERRUPTED, USAGE, StartCommand, StartOptions
from hostler.gateway.config import ConfigError, Configuration, Overrides
from hostler.gateway.last_good import find_configuration, load
from hostler.gateway.preflight import startup_check
from hostler.profiles.file_reading import expanded_path

if TYPE_CHECKING:  # not loaded without a terminal
    from hostler.gateway.cli.live import LiveView
    from hostler.gateway.model_finder import ModelFinder

logger = logging.getLogger(__name__)

#: Threads may take this long to end, in seconds.
_JOIN_S = 0.5


class _Program(Protocol):
    def __call__(
        self, configuration: Configuration, view: LiveView | None = None, *, finder: ModelFinder | None = None
    ) -> int: ...


_PROGRAMS: Mapping[StartCommand, _Program] = {
    "up": run.up,
    "gateway": run.gateway,
    "supervisor": run.supervisor,
}


def launch(options: StartOptions) -> int:
    """Run the program until it ends. Reports on standard error what keeps it from running.

    Threads that hang are not waited for: then this ends the process.
    """
    before = set(threading.enumerate())
    code = _launch(options)
    if _hanging(before):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _launch(options: StartOptions) -> int:
    check, overrides = startup_check(options.command), Overrides(listen=options.listen, key=options.key)
    try:
        finder = None if options.command == "gateway" else _finder(options.paths)
        configuration = overrides.apply(
            load(
                find_configuration(options.config),
                find_mistakes=lambda found: check(overrides.apply(found)),
                find_models=finder,
            )
        )
        if finder is not None and (finder.has_looked or options.save):
            from hostler.gateway.cli.found_models import present_models  # 0.1 s: rich

            present_models(configuration, finder.findings, save=options.save, places=options.paths)
    except ConfigError as error:
        return _refuse(*error.mistakes)
    settings = configuration.settings.gateway.logging
    form: Format = options.log_format.value if options.log_format else "plain" if options.plain else settings.format
    log = configure_logging(options.log_level.value if options.log_level else settings.level, form)
    if configuration.errors is not None:
        for mistake in configuration.errors.mistakes:
            logger.error("%s", mistake)
        logger.error("%s: running with its last good state until it is corrected", configuration.path)
    try:
        view = _live_view(log) if form == "auto" and not options.plain and _can_show_view(sys.stdout) else None
        return _PROGRAMS[options.command](configuration, view, finder=finder)
    except run.CannotRun as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        logger.critical("unhandled exception, exiting", exc_info=True)
        return FAILED
    finally:
        log.close()


def _finder(paths: Collection[str]) -> ModelFinder:
    """Finds models at the paths of the command line. Raises `ConfigError` for one that does not exist."""
    from hostler.gateway.model_finder import ModelFinder

    places = []
    for text in paths:
        try:
            if not text:
                raise ValueError("an empty name; name a file or folder")
            place = expanded_path(text).absolute()
            if not place.exists():
                raise ValueError("no such file or folder")
        except (ValueError, OSError) as error:
            raise ConfigError(f"{text or repr(text)}: {error}") from error
        places.append(place)
    return ModelFinder(places)


def _hanging(before: Collection[threading.Thread]) -> bool:
    """Whether threads that were started since then do not end, such as one that looks up a name for a download."""
    started = [each for each in threading.enumerate() if each not in before and not each.daemon]
    until = time.monotonic() + _JOIN_S
    for thread in started:
        thread.join(max(0.0, until - time.monotonic()))
    return any(thread.is_alive() for thread in started)


def _can_show_view(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _live_view(log: LogHandler) -> LiveView:
    from hostler.gateway.cli.live import LiveView

    return LiveView(log)


def _refuse(*messages: str) -> int:
    sys.stderr.writelines(f"hostler: {message}\n" for message in messages)
    return USAGE
