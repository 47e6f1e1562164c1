"""The programs `up`, `gateway` and `supervisor`: their parts, sockets, signals and banner."""

from __future__ import annotations

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
from hostler.gateway.auth.bind_policy import addresses, bound_addresses, is_loopback, keys_in_force
from hostler.gateway.cli.banner import banner, example_model, format_address, local_url
from hostler.gateway.cli.output import print_in_background
from hostler.gateway.cli.stop_signals import stop_signals
from hostler.gateway.cluster_settings import without_secrets
from hostler.gateway.config import ConfigError, Configuration, secret
from hostler.gateway.events import SwitchChanged
from hostler.gateway.host_address import joins_cluster
from hostler.gateway.preflight import without_token
from hostler.gateway.server import systemd
from hostler.gateway.server.event_loop import Loop
from hostler.gateway.server.process_memory import freeze_garbage_collector, return_large_buffers
from hostler.gateway.server.server import ListenError, Server, bind, server_certificate
from hostler.gateway.settings import parse_address
from hostler.supervisor.contract import SupervisorError, SwitchMoved

if TYPE_CHECKING:  # other modules are imported by the commands that need them
    from hostler.gateway.app import Gateway
    from hostler.gateway.cli.live import LiveView
    from hostler.gateway.model_finder import ModelFinder
    from hostler.supervisor.manager import EngineManager

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: A second signal within this time repeats the first one, in seconds: shells and wrappers both pass it on.
_REPEAT_S = 1.0
#: The same with a live view, which shows at once that the first one arrived.
_REPEAT_WITH_VIEW_S = 0.2

#: The supervisor's own host in its live view.
_THIS_HOST = "here"

#: How often the view asks other processes and gateways, in seconds.
_LOOK_EVERY_S = 1.0

_STDOUT = 1


class CannotRun(Exception):
    """The program cannot run as configured; the message says what to change."""


def up(configuration: Configuration, view: LiveView | None = None, *, finder: ModelFinder | None = None) -> int:
    """Gateway and supervisor in one process, shown in `view`. `finder` has found the models of folders."""
    _or_cannot_run(lambda: keys_in_force(configuration.settings))
    sockets, shared = _listen_for_clients(configuration)
    keys_required = _or_cannot_run(lambda: keys_in_force(configuration.settings, sockets)) is not None
    if configuration.shipped:
        from hostler.gateway.cli.downloads import SourceError, download

        try:
            for profile in configuration.profiles:
                download(profile)
        except SourceError as error:
            raise CannotRun(str(error)) from error
    started = partial(_announce, configuration, sockets, keys_required=keys_required, view=view)

    async def main() -> None:
        manager = _or_cannot_run(lambda: _manager(configuration, engine_host="127.0.0.1"))
        together = _gateway(configuration, manager, finder)
        stops = 0

        def stop() -> None:
            nonlocal stops
            stops += 1
            together.stop()
            if stops > 2:  # the second one aborts answers
                manager.kill_engines()

        showing = _showing_stop(view, stop, configuration.settings.gateway.drain_s, ends_engines=True)
        async with _handling_signals(showing, view), _gateway_view(view, together):
            await together.run(sockets, started=started, shared=shared)
        _check_failure(together)

    return _run(main)


def gateway(configuration: Configuration, view: LiveView | None = None, *, finder: ModelFinder | None = None) -> int:
    """The gateway alone, shown in `view`. It runs no models, whatever `finder` finds."""
    alone = _gateway(configuration)
    sockets, shared = _listen_for_clients(configuration)
    keys_required = _or_cannot_run(lambda: keys_in_force(configuration.settings, sockets)) is not None
    started = partial(_announce, configuration, sockets, keys_required=keys_required, view=view, runs_models=False)

    async def main() -> None:
        stop = _showing_stop(view, alone.stop, configuration.settings.gateway.drain_s)
        async with _handling_signals(stop, view), _gateway_view(view, alone):
            await alone.run(sockets, started=started, shared=shared)
        _check_failure(alone)

    return _run(main)


def supervisor(configuration: Configuration, view: LiveView | None = None, *, finder: ModelFinder | None = None) -> int:
    """The supervisor alone with its HTTP interface, shown in `view`. `finder` has found the models of folders."""
    from hostler.gateway.supervisor_app import create_app

    settings = configuration.settings.supervisor
    token = _or_cannot_run(lambda: secret(settings.token, settings.token_file, "supervisor.token_file"))
    host, port = parse_address(settings.listen)
    certificate = _or_cannot_run(lambda: server_certificate(settings.tls, "supervisor.tls"))
    scheme = "http" if certificate is None else "https"
    sockets, shared = _listen([(host, port)], "supervisor.listen")
    if token is None and not joins_cluster(configuration.settings):
        _refuse_without_token(bound_addresses(sockets))

    async def main() -> None:
        manager = _or_cannot_run(
            lambda: _manager(configuration, engine_host="127.0.0.1" if host.startswith("/") else host)
        )
        app: Any = create_app(configuration, manager, finder=finder)
        bound = format_address(*bound_addresses(sockets)[0])

        def announce() -> None:
            text = f"Hostler's supervisor listens on {bound}"
            if view is None:
                print_in_background(_STDOUT, text)
            else:
                view.begin(text, f"hostler {__version__}, supervisor", [f"{scheme}://{bound}"], requests=False)
            systemd.notify("READY=1")

        server = Server(
            app, drain_s=5.0, lifespan=True, shared=shared, started_callback=announce, certificate=certificate
        )

        requested = anyio.Event()

        def end() -> None:
            app.state.stopping.set()
            server.stop()

        def stop() -> None:
            if requested.is_set():
                end()
                manager.kill_engines()
            requested.set()

        async def drain() -> None:
            await requested.wait()
            app.state.leases.close()
            await app.state.leases.drained(settings.drain_s)
            end()

        async with (
            _handling_signals(_showing_stop(view, stop, None), view),
            _supervisor_view(view, manager),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(drain)
            await server.serve(sockets)
            tasks.cancel_scope.cancel()

    return _run(main)


@asynccontextmanager
async def _gateway_view(view: LiveView | None, gateway: Gateway) -> AsyncIterator[None]:
    """Shows the gateway inside."""
    if view is None:
        yield
        return
    gateway.bus.listen(view.on_event)

    async def look() -> None:
        while True:
            await gateway.refresh_status()
            await anyio.sleep(_LOOK_EVERY_S)

    async with view.shown(gateway.status), anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _supervisor_view(view: LiveView | None, manager: EngineManager) -> AsyncIterator[None]:
    """Shows the supervisor inside."""
    if view is None:
        yield
        return
    from hostler.gateway.cli.live_layout import status_of_host

    watching = view

    async def follow() -> None:
        async with manager.events() as events:
            async for event in events:
                if isinstance(event, SwitchMoved):
                    watching.on_event(SwitchChanged(backend=_THIS_HOST, switch=event))

    async with view.shown(lambda: status_of_host(manager.status_now(), _THIS_HOST)), anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        yield
        tasks.cancel_scope.cancel()


def _showing_stop(
    view: LiveView | None, stop: Callable[[], None], drain_s: float | None, *, ends_engines: bool = False
) -> Callable[[], None]:
    """`stop`, shown in the view as well. `ends_engines`: whether its third call ends engines at once."""
    if view is None:
        return stop
    watching, stops = view, 0

    def show_and_stop() -> None:
        nonlocal stops
        stops += 1
        if stops == 2 and ends_engines:
            watching.stopping(
                "Stopping now: engines save their slots and exit. Ctrl-C again ends them at once."
                "|Stopping now. Ctrl-C again ends engines at once.|Stopping now."
            )
        elif stops > 1:
            watching.stopping("Stopping now.")
        elif drain_s is None:
            watching.stopping(
                "Stopping: answers end, engines save their slots and exit. Ctrl-C again stops now.|Stopping."
            )
        else:
            watching.stopping(
                f"Stopping: waiting up to {drain_s:g} s for answers in progress. Ctrl-C again aborts them."
                "|Stopping. Ctrl-C again aborts answers.|Stopping."
            )
        stop()

    return show_and_stop


def _refuse_without_token(where: Iterable[tuple[str, int]]) -> None:
    for host, port in where:
        if not is_loopback(host):
            raise CannotRun(without_token(host, port))


def _check_failure(gateway: Gateway) -> None:
    if gateway.failure is not None:
        raise CannotRun(gateway.failure)


def _listen_for_clients(configuration: Configuration) -> tuple[list[socket.socket], bool]:
    """The listening sockets of a gateway, see `_listen`."""
    several = configuration.settings.gateway.workers > 1
    return _listen(addresses(configuration.settings), "gateway.listen", several=several)


def _listen(
    wanted: Sequence[tuple[str, int]], setting: str, *, several: bool = False
) -> tuple[list[socket.socket], bool]:
    """Listening sockets: those that systemd passed, which need not be at the `wanted` addresses, else our own. Whether
    they are systemd's. `several`: further sockets may be bound to the same addresses.
    """
    passed = systemd.inherited()
    if any(each.type != socket.SOCK_STREAM for each in passed):
        raise CannotRun("systemd passed a socket that is no stream; write ListenStream= in its unit")
    if passed:
        return passed, True
    return _or_cannot_run(lambda: bind(wanted, f"{setting} in the configuration file", several=several)), False


def _gateway(
    configuration: Configuration, manager: EngineManager | None = None, finder: ModelFinder | None = None
) -> Gateway:
    from hostler.gateway.app import create_app

    gateway: Gateway = _or_cannot_run(
        lambda: create_app(configuration, manager, supervise=False, finder=finder, with_workers=True)
    ).state.gateway
    return gateway


def _manager(configuration: Configuration, *, engine_host: str) -> EngineManager:
    from hostler.gateway.cli.downloads import log_progress
    from hostler.supervisor.manager import create_manager

    try:
        return create_manager(
            configuration.profiles,
            configuration.settings.supervisor,
            host=engine_host,
            report=log_progress(),
            environ=without_secrets(os.environ, configuration.settings.cluster),
        )
    except OSError as error:
        where = error.filename or "the cache folder"
        raise CannotRun(
            f"{where}: {error.strerror or error}; set supervisor.slots_dir, or HOSTLER_CACHE for all state, to a writable folder"
        ) from error


def _or_cannot_run(make: Callable[[], T]) -> T:
    try:
        return make()
    except (ConfigError, ListenError) as error:
        raise CannotRun(str(error)) from error
    except SupervisorError as error:
        raise CannotRun(error.failure.message) from error


def _run(main: Callable[[], Awaitable[None]]) -> int:
    return_large_buffers()
    anyio.run(main, backend_options={"loop_factory": Loop})
    return 0


@asynccontextmanager
async def _handling_signals(stop: Callable[[], None], view: LiveView | None = None) -> AsyncIterator[None]:
    """Handles signals until everything inside has ended, so that none ends the process while engines are stopping."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_handle_signals, stop, _REPEAT_S if view is None else _REPEAT_WITH_VIEW_S)
        tasks.start_soon(systemd.keep_watchdog)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()


async def _handle_signals(stop: Callable[[], None], repeat_s: float) -> None:
    """The first of `stop_signals` stops gracefully, a later one at once."""
    first_at: float | None = None
    with stop_signals() as signals:
        async for number in signals:
            now = anyio.current_time()
            if first_at is None:
                first_at = now
                systemd.notify("STOPPING=1")
                logger.info(
                    "%s received, finishing requests in progress; send it again to stop now",
                    signal.Signals(number).name,
                )
            elif now - first_at < repeat_s:
                continue
            else:
                logger.warning("%s received again, stopping now", signal.Signals(number).name)
            stop()


def _announce(
    configuration: Configuration,
    sockets: Sequence[socket.socket],
    *,
    keys_required: bool,
    view: LiveView | None,
    runs_models: bool = True,
) -> None:
    # A gateway alone does not run the built-in profiles.
    backends = configuration.settings.backends.values()
    profiles = () if configuration.shipped and not runs_models else configuration.profiles
    names = [profile.name for profile in profiles]
    elsewhere = [model for backend in backends for model in backend.models if model != "*"]
    secure = configuration.settings.gateway.tls is not None
    text = banner(
        names,
        example_model(profiles, elsewhere),
        bound_addresses(sockets),
        keys_required=keys_required,
        hostname=socket.gethostname().lower(),
        secure=secure,
        alone=runs_models and not backends and configuration.settings.cluster is None,
    )
    if view is None:
        print_in_background(_STDOUT, text)
    else:
        urls = list(dict.fromkeys(local_url(*place, secure=secure) for place in bound_addresses(sockets)))
        view.begin(text, f"hostler {__version__}", [*urls, f"{urls[0]}/ui/"])
    systemd.notify("READY=1")
    freeze_garbage_collector()
