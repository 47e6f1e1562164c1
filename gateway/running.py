"""Running the processes: logging, signals, sockets, and what a person at the terminal is told."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio

from hostler.gateway.app import Gateway, addresses, is_loopback, keys_in_force, places
from hostler.gateway.records import history
from hostler.gateway.records.journal import Lines
from hostler.gateway.reloading import Reloader
from hostler.gateway.serving import notify
from hostler.gateway.serving.server import ListenError, Server, bind
from hostler.gateway.settings import Configuration, SettingsError, parse_address, secret
from hostler.gateway.terminal import fetching
from hostler.gateway.terminal.greeting import greeting, shown
from hostler.profiles.schema import Profile
from hostler.supervisor.contract import SupervisorError
from hostler.supervisor.fleet import Fleet
from hostler.supervisor.host import open_host

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Two signals within this time are one wish, in seconds.
_SAME_WISH_S = 1.0


class CannotRun(Exception):
    """The program cannot run as configured; the message says what to change."""


class _Lines(logging.Formatter):
    """Python's own format of a line; the second's text is made once a second."""

    _second = -1
    _shown = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return self._time(record.created)

    def _time(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            self._second, self._shown = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._shown},{int((at - second) * 1000):03d}"

    def format(self, record: logging.LogRecord) -> str:
        if not isinstance(record, Lines):
            return super().format(record)
        kind = f"{record.levelname:7} {record.name}"
        return "\n".join(f"{self._time(at)} {kind}: {text}" for at, text in record.lines)


def set_up_logging(level: str) -> None:
    """Plain lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Half of a line's price is finding out which thread, process and line of code it came from; no line says so.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    for name in ("uvicorn", "uvicorn.error", "httpx", "httpcore", "asyncio", "sse_starlette", "watchfiles"):
        logging.getLogger(name).setLevel(logging.WARNING)


def up(configuration: Configuration) -> int:
    """Gateway and supervisor in one process."""
    _guarded(lambda: keys_in_force(configuration.settings))
    sockets = _listen(addresses(configuration.settings), "gateway.listen")
    keyed = _guarded(lambda: keys_in_force(configuration.settings, sockets)) is not None
    if configuration.shipped:
        try:
            for profile in configuration.profiles:
                fetching.fetch(profile)
        except fetching.SourceError as error:
            raise CannotRun(str(error)) from error
    started = partial(_announce, configuration, sockets, keyed=keyed)

    async def main() -> None:
        fleet = _guarded(lambda: _fleet(configuration, engine_host="127.0.0.1"))
        together = _guarded(
            lambda: Gateway(
                configuration.settings,
                local=fleet,
                history=history.default_file(),
                library=configuration.library,
                presets=configuration.presets,
                refresh=lambda: reloader.reload(),
            )
        )
        reloader = Reloader(configuration, partial(_take_over, fleet, together), os.environ, made=together.made)
        async with _heeding_signals(together.stop), anyio.create_task_group() as tasks:
            tasks.start_soon(fleet.run)
            tasks.start_soon(reloader.run)
            await together.run(sockets, started=started)
            tasks.cancel_scope.cancel()

    return _run(main)


def gateway(configuration: Configuration) -> int:
    """The gateway alone."""
    if not configuration.settings.backends:
        raise CannotRun("no backends are configured, so nothing could answer; add `backends:` or run `hostler up`")
    alone = _guarded(
        lambda: Gateway(
            configuration.settings,
            history=history.default_file(),
            library=configuration.library,
            presets=configuration.presets,
        )
    )
    sockets = _listen(addresses(configuration.settings), "gateway.listen")
    keyed = _guarded(lambda: keys_in_force(configuration.settings, sockets)) is not None
    started = partial(_announce, configuration, sockets, keyed=keyed)

    async def main() -> None:
        async with _heeding_signals(alone.stop):
            await alone.run(sockets, started=started)

    return _run(main)


def supervisor(configuration: Configuration) -> int:
    """The supervisor alone, with its HTTP interface."""
    from hostler.supervisor.api import create_app

    settings = configuration.settings.supervisor
    token = _guarded(lambda: secret(settings.token, settings.token_file, "supervisor.token_file"))
    host, port = parse_address(settings.listen)
    if token is None:
        _refuse_without_token([(host, port)])
    sockets = _listen([(host, port)], "supervisor.listen")
    if token is None:
        _refuse_without_token(places(sockets))
    allowed = configuration.settings.gateway.allowed_hosts

    async def main() -> None:
        fleet = _guarded(lambda: _fleet(configuration, engine_host=host))
        app: Any = create_app(fleet, token=token, logs=fleet.logs, metrics=fleet.metrics.render, allowed_hosts=allowed)
        bound = shown(*places(sockets)[0])

        def announce() -> None:
            _say(f"Hostler's supervisor listens on {bound}")
            notify.tell("READY=1")

        server = Server(app, drain_s=5.0, started_callback=announce)

        def stop() -> None:
            app.state.stopping.set()
            server.stop()

        async with _heeding_signals(stop), anyio.create_task_group() as tasks:
            tasks.start_soon(fleet.run)
            tasks.start_soon(Reloader(configuration, fleet.replace_profiles, os.environ).run)
            await server.serve(sockets)
            tasks.cancel_scope.cancel()

    return _run(main)


async def _take_over(fleet: Fleet, gateway: Gateway, profiles: Sequence[Profile]) -> None:
    """Take over changed profiles; the answers of engines that have to go for it end first."""
    await gateway.quiet(fleet.outdated(profiles))
    await fleet.replace_profiles(profiles)


def _refuse_without_token(where: Iterable[tuple[str, int]]) -> None:
    for host, port in where:
        if not is_loopback(host):
            raise CannotRun(
                f"supervisor.listen: refusing to listen on {host}:{port} without a token, since others could reach it; "
                "set supervisor.token (e.g. ${env:HOSTLER_SUPERVISOR_TOKEN}), or listen on 127.0.0.1"
            )


def _listen(wanted: Sequence[tuple[str, int]], setting: str) -> list[socket.socket]:
    """Listening sockets: those that systemd opened for us, else our own. What they are is checked by the caller:
    systemd's need not be where `wanted` says."""
    handed = notify.inherited()
    if any(each.family not in (socket.AF_INET, socket.AF_INET6) for each in handed):
        raise CannotRun("a socket was handed over that is no TCP socket; write ListenStream=ADDRESS:PORT in its unit")
    return handed or _guarded(lambda: bind(wanted, f"{setting} in the configuration file"))


def _fleet(configuration: Configuration, *, engine_host: str) -> Fleet:
    try:
        return open_host(
            configuration.profiles,
            configuration.settings.supervisor,
            host=engine_host,
            report=fetching.log_progress(),
        )
    except OSError as error:
        raise CannotRun(f"supervisor.slots_dir: {error}; name a folder that can be written to") from error


def _guarded(make: Callable[[], T]) -> T:
    try:
        return make()
    except (SettingsError, ListenError) as error:
        raise CannotRun(str(error)) from error
    except SupervisorError as error:
        raise CannotRun(error.failure.message) from error


def _run(main: Callable[[], Awaitable[None]]) -> int:
    anyio.run(main, backend_options={"use_uvloop": True})
    return 0


@asynccontextmanager
async def _heeding_signals(stop: Callable[[], None]) -> AsyncIterator[None]:
    """Signals are heeded until everything inside has ended: one that comes while engines are being stopped must not
    end the process before they are."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_heed_signals, stop)
        tasks.start_soon(notify.keep_watchdog)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()


async def _heed_signals(stop: Callable[[], None]) -> None:
    """Ctrl-C and SIGTERM finish what is in progress; a later one does not wait for it.

    One that follows at once is the same wish told twice: a shell and a wrapper such as `timeout` both pass it on.
    """
    asked_at: float | None = None
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            now = anyio.current_time()
            if asked_at is None:
                asked_at = now
                notify.tell("STOPPING=1")
                logger.info("%s: finishing what is in progress; again to stop at once", signal.Signals(number).name)
            elif now - asked_at < _SAME_WISH_S:
                continue
            else:
                logger.warning("stopping now")
            stop()


def _announce(configuration: Configuration, sockets: Sequence[socket.socket], *, keyed: bool) -> None:
    names = [profile.name for profile in configuration.profiles]
    default = next(
        (profile.name for profile in configuration.profiles if profile.default), names[0] if names else "NAME"
    )
    _say(greeting(names, default, places(sockets), keyed=keyed, machine=socket.gethostname().lower()))
    notify.tell("READY=1")
    _settle()


def _settle() -> None:
    """What is loaded by now stays for good: the garbage collector need not look through it with every request."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _say(text: str) -> None:
    """To the person who started us: flushed, since pipes are read by people, too."""
    print(text, flush=True)  # noqa: T201 - this is the program's own output
