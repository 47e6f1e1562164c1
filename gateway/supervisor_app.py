"""The supervisor of this machine as an ASGI application of its own, put together from the configuration."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from hostler.gateway.auth.bind_policy import is_loopback
from hostler.gateway.cluster_settings import MISSING_CLUSTER_EXTRA, without_secrets
from hostler.gateway.config import ConfigError, Configuration, secret
from hostler.gateway.config_reload import Reloader
from hostler.gateway.host_address import joins_cluster
from hostler.gateway.last_good import find_configuration, load
from hostler.gateway.model_finder import ModelFinder
from hostler.gateway.preflight import startup_check
from hostler.gateway.settings import Settings, parse_address
from hostler.gateway.shared_profiles_file import SharedProfilesFile
from hostler.gateway.state_files import state_file

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from hostler.gateway.cluster.host_member import HostMember
    from hostler.supervisor.manager import EngineManager


def create_app(
    configuration: Configuration | None = None,
    manager: EngineManager | None = None,
    *,
    finder: ModelFinder | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Starlette:
    """The supervisor's HTTP API, with a lifespan in which its engines run.

    Under another server: `uvicorn --factory hostler.gateway.supervisor_app:create_app`.

    `app.state.leases` is the `LeaseServer`. Without a `configuration` it is read from its usual places, and a `manager` is
    made from it. Setting `app.state.stopping` ends streams and pending requests. Raises `ConfigError`, and `OSError` for a
    cache folder that cannot be made.
    """
    from hostler.supervisor.api import create_app as create_api
    from hostler.supervisor.lease_server import LeaseServer
    from hostler.supervisor.machine_sleep import MachineSleep
    from hostler.supervisor.manager import create_manager

    finder = finder or ModelFinder()
    if configuration is None:
        configuration = load(find_configuration(None, environ), environ, find_models=finder)
    settings = configuration.settings.supervisor
    token = secret(settings.token, settings.token_file, "supervisor.token_file")
    if manager is None:
        host, _ = parse_address(settings.listen)
        host = "127.0.0.1" if host.startswith("/") else host  # of a Unix socket
        engine_environ = without_secrets(environ, configuration.settings.cluster)
        manager = create_manager(configuration.profiles, settings, host=host, environ=engine_environ)
    # Without a token of its own, one on loopback serves every gateway of this machine, as ever.
    is_open = token is None and is_loopback(parse_address(settings.listen)[0])
    engines, leases = manager, LeaseServer(manager, limits=configuration.host_limits)
    finder.is_loaded = manager.is_loaded
    reloader = Reloader(
        configuration, manager.replace_profiles, environ, find_mistakes=startup_check("supervisor"), finder=finder
    )
    member = _host_member(configuration.settings, manager, reloader)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engines.run)
            tasks.start_soon(leases.run)
            tasks.start_soon(reloader.run)
            if settings.sleep is not None:
                sleep = MachineSleep(settings.sleep, leases, keep_awake=engines.is_fetching, clock=leases.clock)
                tasks.start_soon(sleep.run)
            if member is not None:
                tasks.start_soon(member.run)
            try:
                yield
            finally:
                app.state.stopping.set()
            tasks.cancel_scope.cancel()
        if member is not None:
            member.close()

    api = create_api(
        manager,
        leases,
        token=token,
        logs=manager.logs,
        metrics=lambda: engines.metrics.render(queue=(leases.host.waiting, leases.host.serving)),
        allowed_hosts=configuration.settings.gateway.allowed_hosts,
        lifespan=lifespan,
        cluster_token=None if member is None or is_open else member.token,
    )
    api.state.leases = leases
    return api


def _host_member(settings: Settings, manager: EngineManager, reloader: Reloader) -> HostMember | None:
    """`None` for a host that belongs to no cluster: nothing of it is imported then."""
    if settings.cluster is None or not joins_cluster(settings):
        return None
    try:
        from hostler.gateway.cluster.host_member import HostMember
    except ModuleNotFoundError as error:
        raise ConfigError(MISSING_CLUSTER_EXTRA) from error
    token = secret(settings.cluster.token, settings.cluster.token_file, "cluster.token_file")
    assert token is not None, "see `joins_cluster`"
    return HostMember(
        settings.cluster,
        settings.supervisor,
        token=token,
        state=state_file,
        generation=manager.status_now().generation,
        apply_profiles=None
        if (file := reloader.configuration.shared.file) is None
        else SharedProfilesFile(file, reloader).apply,
    )
