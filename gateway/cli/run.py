"""Running the processes: signals, sockets, and what a person at the terminal is told."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from hostler import __version__
from hostler.gateway.auth.bind_policy import addresses, is_loopback, keys_in_force, places
from hostler.gateway.cli.banner import greeting, nearby, shown
from hostler.gateway.config import ConfigError, Configuration, parse_address, secret
from hostler.gateway.config_reload import Reloader
from hostler.gateway.events import SwitchChanged
from hostler.gateway.server import systemd as notify
from hostler.gateway.server.server import ListenError, Server, bind
from hostler.profiles.schema import Profile
from hostler.supervisor.contract import SupervisorError, SwitchMoved

if TYPE_CHECKING:  # what only some of the commands need is loaded by them
    from hostler.gateway.app import Gateway
    from hostler.gateway.cli.live import Live
    from hostler.supervisor.manager import EngineManager

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Two signals within this time are one wish, in seconds.
_SAME_WISH_S = 1.0
#: The same for somebody who watches, and sees that the first one was heard.
_SAME_KEY_S = 0.2

#: What a supervisor's own machine is called in its view.
_HERE = "here"


class CannotRun(Exception):
    """The program cannot run as configured; the message says what to change."""


def up(configuration: Configuration, view: Live | None = None) -> int:
    """Gateway and supervisor in one process. `view` is what a person at the terminal watches, if there is one."""
    _guarded(lambda: keys_in_force(configuration.settings))
    sockets = _listen(addresses(configuration.settings), "gateway.listen")
    keyed = _guarded(lambda: keys_in_force(configuration.settings, sockets)) is not None
    if configuration.shipped:
        from hostler.gateway.cli import downloads as fetching

        try:
            for profile in configuration.profiles:
                fetching.fetch(profile)
        except fetching.SourceError as error:
            raise CannotRun(str(error)) from error
    started = partial(_announce, configuration, sockets, keyed=keyed, view=view)

    async def main() -> None:
        manager = _guarded(lambda: _fleet(configuration, engine_host="127.0.0.1"))
        together = _gateway(configuration, local=manager, refresh=lambda: reloader.reload())
        reloader = Reloader(configuration, partial(_take_over, manager, together), os.environ, made=together.made)
        stop = _telling(view, together.stop, configuration.settings.gateway.drain_s)
        async with (
            _heeding_signals(stop, view),
            _watched(view, together),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(manager.run)
            tasks.start_soon(reloader.run)
            await together.run(sockets, started=started)
            tasks.cancel_scope.cancel()

    return _run(main)


def gateway(configuration: Configuration, view: Live | None = None) -> int:
    """The gateway alone. `view` as in `up`."""
    if not configuration.settings.backends:
        raise CannotRun("no backends are configured, so nothing could answer; add `backends:` or run `hostler up`")
    alone = _gateway(configuration)
    sockets = _listen(addresses(configuration.settings), "gateway.listen")
    keyed = _guarded(lambda: keys_in_force(configuration.settings, sockets)) is not None
    started = partial(_announce, configuration, sockets, keyed=keyed, view=view, runs_models=False)

    async def main() -> None:
        stop = _telling(view, alone.stop, configuration.settings.gateway.drain_s)
        async with _heeding_signals(stop, view), _watched(view, alone):
            await alone.run(sockets, started=started)

    return _run(main)


def supervisor(configuration: Configuration, view: Live | None = None) -> int:
    """The supervisor alone, with its HTTP interface. `view` as in `up`."""
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
        # On a port that changes at every start nobody finds it again.
        manager = _guarded(lambda: _fleet(configuration, engine_host=host, place=settings.listen if port else None))
        app: Any = create_app(
            manager, token=token, logs=manager.logs, metrics=manager.metrics.render, allowed_hosts=allowed
        )
        bound = shown(*places(sockets)[0])

        def announce() -> None:
            _say(f"Hostler's supervisor listens on {bound}")
            if view is not None:
                view.begin(f"hostler {__version__}, supervisor", [f"http://{bound}"], requests=False)
            notify.tell("READY=1")

        server = Server(app, drain_s=5.0, started_callback=announce)

        def stop() -> None:
            app.state.stopping.set()
            server.stop()

        async with (
            _heeding_signals(_telling(view, stop, None), view),
            _watched_alone(view, manager),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(manager.run)
            tasks.start_soon(Reloader(configuration, manager.replace_profiles, os.environ).run)
            await server.serve(sockets)
            tasks.cancel_scope.cancel()

    return _run(main)


@asynccontextmanager
async def _watched(view: Live | None, gateway: Gateway) -> AsyncIterator[None]:
    """The live view of a gateway, if there is somebody to watch it."""
    if view is None:
        yield
        return
    gateway.bus.listen(view.hear)
    async with view.shown(gateway.status):
        yield


@asynccontextmanager
async def _watched_alone(view: Live | None, manager: EngineManager) -> AsyncIterator[None]:
    """The live view of a supervisor, if there is somebody to watch it."""
    if view is None:
        yield
        return
    from hostler.gateway.cli.live import view_of

    watching = view

    async def follow() -> None:
        async with manager.events() as events:
            async for event in events:
                if isinstance(event, SwitchMoved):
                    watching.hear(SwitchChanged(backend=_HERE, switch=event))

    async with view.shown(lambda: view_of(manager.status_now(), _HERE)), anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        yield
        tasks.cancel_scope.cancel()


def _telling(view: Live | None, stop: Callable[[], None], drain_s: float | None) -> Callable[[], None]:
    """`stop`, which the view is told of."""
    if view is None:
        return stop
    watching, asked = view, False

    def told() -> None:
        nonlocal asked
        if asked:
            watching.stopping("Stopping now.")
        elif drain_s is None:
            watching.stopping("Stopping: engines keep their conversations and end.")
        else:
            watching.stopping(
                f"Stopping: answers end first, at most {drain_s:g} s. Ctrl-C again cuts them off."
                "|Stopping. Ctrl-C again cuts answers off.|Stopping."
            )
        asked = True
        stop()

    return told


async def _take_over(manager: EngineManager, gateway: Gateway, profiles: Sequence[Profile]) -> None:
    """Take over changed profiles; the answers of engines that have to go for it end first."""
    await gateway.quiet(manager.outdated(profiles))
    await manager.replace_profiles(profiles)


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


def _gateway(
    configuration: Configuration,
    *,
    local: EngineManager | None = None,
    refresh: Callable[[], Awaitable[object]] | None = None,
) -> Gateway:
    from hostler.gateway.app import Gateway
    from hostler.gateway.telemetry import history

    return _guarded(
        lambda: Gateway(
            configuration.settings,
            local=local,
            history=history.default_file(),
            library=configuration.library,
            presets=configuration.presets,
            refresh=refresh,
        )
    )


def _fleet(configuration: Configuration, *, engine_host: str, place: str | None = None) -> EngineManager:
    from hostler.gateway.cli import downloads as fetching
    from hostler.supervisor.manager import create_manager

    try:
        return create_manager(
            configuration.profiles,
            configuration.settings.supervisor,
            host=engine_host,
            place=place,
            report=fetching.log_progress(),
        )
    except OSError as error:
        where = error.filename or "the cache folder"
        raise CannotRun(
            f"{where}: {error.strerror or error}; name a folder that can be written to as supervisor.slots_dir, "
            "or in HOSTLER_CACHE for everything that is kept"
        ) from error


def _guarded(make: Callable[[], T]) -> T:
    try:
        return make()
    except (ConfigError, ListenError) as error:
        raise CannotRun(str(error)) from error
    except SupervisorError as error:
        raise CannotRun(error.failure.message) from error


def _run(main: Callable[[], Awaitable[None]]) -> int:
    anyio.run(main, backend_options={"use_uvloop": True})
    return 0


@asynccontextmanager
async def _heeding_signals(stop: Callable[[], None], view: Live | None = None) -> AsyncIterator[None]:
    """Signals are heeded until everything inside has ended: one that comes while engines are being stopped must not
    end the process before they are."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_heed_signals, stop, _SAME_WISH_S if view is None else _SAME_KEY_S)
        tasks.start_soon(notify.keep_watchdog)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()


async def _heed_signals(stop: Callable[[], None], same_wish_s: float) -> None:
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
            elif now - asked_at < same_wish_s:
                continue
            else:
                logger.warning("stopping now")
            stop()


def _announce(
    configuration: Configuration,
    sockets: Sequence[socket.socket],
    *,
    keyed: bool,
    view: Live | None,
    runs_models: bool = True,
) -> None:
    # A gateway alone runs none of the shipped profiles: its models are those of its backends.
    backends = configuration.settings.backends.values()
    profiles = () if configuration.shipped and not runs_models else configuration.profiles
    names = [profile.name for profile in profiles]
    named = [*names, *(model for backend in backends for model in backend.models if model != "*"), "NAME"]
    default = next((profile.name for profile in profiles if profile.default), named[0])
    _say(greeting(names, default, places(sockets), keyed=keyed, machine=socket.gethostname().lower()))
    if view is not None:
        near = list(dict.fromkeys(nearby(*place) for place in places(sockets)))
        view.begin(f"hostler {__version__}", [*near, f"{near[0]}/ui/"])
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
