"""The admin app: the gateway's own routes and their background tasks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import anyio
import msgspec

from hostler import __version__
from hostler.gateway.admin.actions import ActionRoutes
from hostler.gateway.admin.backends import BackendModels, BackendRoutes
from hostler.gateway.admin.drain import DrainRoutes
from hostler.gateway.admin.dry_run import DryRunRoutes, Preview
from hostler.gateway.admin.key_list import KeyRoutes
from hostler.gateway.admin.login import LoginRoutes
from hostler.gateway.admin.logs import LogRoutes
from hostler.gateway.admin.mcp_server import MCPRoutes
from hostler.gateway.admin.model_downloads import ModelDownloads
from hostler.gateway.admin.model_leases import ModelLeaseRoutes
from hostler.gateway.admin.routes import StatusRoutes
from hostler.gateway.admin.status import ChainView, StatusBuilder, StatusView
from hostler.gateway.admin.transcripts import TranscriptRoutes
from hostler.gateway.admin.ui import UI
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.auth.keys import KeyRing
from hostler.gateway.auth.middleware import WRONG_KEYS, KeyThrottle
from hostler.gateway.auth.sessions import Sessions
from hostler.gateway.backends.chain import Chain
from hostler.gateway.cluster_view import ClusterView
from hostler.gateway.config import FileErrors
from hostler.gateway.events import Bus, Event, RequestFinished
from hostler.gateway.host_choice import HostChoice
from hostler.gateway.in_flight import OtherProcesses, OtherRequests
from hostler.gateway.key_usage import KeyUsage
from hostler.gateway.middleware.request_context import InFlightRequests
from hostler.gateway.model_catalog import Catalog
from hostler.gateway.routing import Router
from hostler.gateway.telemetry.history import History
from hostler.gateway.telemetry.log_buffer import LogBuffer
from hostler.gateway.telemetry.metrics import BackendGauges, ChainGauges, GatewayMetrics
from hostler.gateway.telemetry.transcripts import Transcripts
from hostler.supervisor.scheduling.host import Host


@runtime_checkable
class SupportsLogs(Protocol):
    """A supervisor that serves the logs of its engines."""

    def logs(self, model: str, follow: bool = False) -> AsyncIterator[str]: ...


class RendersMetrics(Protocol):
    """Prometheus' text format, without the figures of the process where the gateway exposes these itself."""

    async def render(self, *, queue: tuple[int, int] | None = None, process: bool = True) -> bytes: ...


@runtime_checkable
class SupportsMetrics(Protocol):
    """A supervisor in this process, whose metrics are part of the gateway's."""

    @property
    def metrics(self) -> RendersMetrics: ...


class AdminApp:
    """The routes for operators, dashboards and monitoring. `run` until cancelled; `close` ends event streams first.

    `history` is the file to keep it in, `None` for memory only. `transcripts` is `None` while recording is off, and
    `sessions` where no keys are needed. `chain_view` returns the current state of `chain`, `backend_models` the models of
    its backends, `preview` what is changed in a request, `config_errors` what is wrong with the configuration file,
    `cluster` the state of the cluster, if there is one, in which this gateway is called `gateway`. `others` are requests
    that other processes of this gateway serve, `gateways` those of other gateways.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        catalog: Catalog,
        hosts: Mapping[str, Host],
        host_choice: HostChoice,
        supervisors: Mapping[str, object],
        chain: Chain,
        chain_view: Callable[[], ChainView],
        backend_models: Callable[[], BackendModels],
        preview: Preview,
        config_errors: Callable[[], FileErrors | None],
        in_progress: InFlightRequests,
        others: OtherProcesses | None = None,
        downloads: ModelDownloads,
        gateways: OtherRequests | None = None,
        keys: KeyRing | None,
        key_usage: KeyUsage | None = None,
        cluster: Callable[[], ClusterView] | None = None,
        gateway: str | None = None,
        history: Path | None,
        transcripts: Transcripts | None = None,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        elsewhere: list[OtherRequests] = [each for each in (others, gateways) if each is not None]
        self._status = StatusBuilder(
            catalog,
            hosts,
            contexts=in_progress.contexts,
            others=others,
            elsewhere=elsewhere,
            chain=chain_view,
            config_errors=config_errors,
            cluster=cluster,
            gateway=gateway,
            version=__version__,
            recording=transcripts is not None,
            clock=clock,
            wall=wall,
        )
        self._metrics = GatewayMetrics(
            lambda: [(name, host.waiting, host.serving) for name, host in hosts.items()],
            lambda: _gauges(chain_view()),
            None
            if cluster is None
            else lambda: msgspec.structs.replace(cluster(), requests=self._status.requests_by_gateway()),
            None if others is None else lambda: (others.serving, others.restarts),
            version=__version__,
        )
        self._supervisor_metrics = [
            (hosts[name], each.metrics) for name, each in supervisors.items() if isinstance(each, SupportsMetrics)
        ]
        self.throttle = KeyThrottle(limit=WRONG_KEYS, clock=clock)
        self.sessions = Sessions(keys, clock) if keys is not None else None
        self._gateway = gateway
        self.history = History(history, sample=self._status.sample, wall=wall, gateway=gateway)
        self._log_buffer = LogBuffer()
        self._transcripts = transcripts
        self._status_routes = StatusRoutes(
            self._status, hosts, self.history, metrics=self._render_metrics, version=__version__
        )
        self._log_routes = LogRoutes(
            self._log_buffer,
            lambda: {name: each.logs for name, each in supervisors.items() if isinstance(each, SupportsLogs)},
        )
        self._downloads = downloads
        self._mcp = MCPRoutes(__version__)
        self._parts = (
            self._status_routes,
            self._mcp,
            ActionRoutes(catalog, hosts, host_choice, chain.hops, in_progress, elsewhere),
            ModelLeaseRoutes(catalog, hosts, host_choice, chain.hops),
            downloads,
            DryRunRoutes(catalog.find, chain, host_choice, preview),
            DrainRoutes(catalog, hosts, chain, in_progress.contexts, elsewhere),
            BackendRoutes(backend_models),
            self._log_routes,
            TranscriptRoutes(transcripts, self._status.refresh),
            KeyRoutes(keys, key_usage),
            LoginRoutes(self.sessions, lambda address: self.throttle.refusal(address, _INVALID_KEY)),
            UI(self._status.view, logins=self.sessions is not None),
        )
        bus.listen(self._metrics.on_event)
        bus.listen(self._on_event)

    def routes(self) -> list[RouteMatch]:
        """The gateway's own routes."""
        return [route for part in self._parts for route in part.routes()]

    def _on_event(self, event: Event) -> None:
        if self._gateway is not None and isinstance(event, RequestFinished):
            event = msgspec.structs.replace(event, gateway=self._gateway)
        self.history.on_event(event)
        self._status_routes.on_event(event)

    def use(self, router: Router) -> None:
        """Describe all routes in `/openapi.json`, those of the protocols among them, and let tools of agents call them."""
        self._status_routes.describe(router.routes())
        self._mcp.use(router)

    def status(self) -> StatusView:
        """The current state of the gateway."""
        return self._status.view()

    async def refresh(self) -> None:
        """Bring what other processes and gateways have of the state up to date."""
        await self._status.refresh()

    async def answer_times(self) -> dict[str, dict[str, list[float]]]:
        """See `History.answer_times`. Waits for `run`."""
        return await self.history.answer_times()

    async def run(self) -> None:
        with self._log_buffer.installed():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.history.run)
                if self._transcripts is not None:
                    tasks.start_soon(self._transcripts.run)
                tasks.start_soon(self._status_routes.run)
                tasks.start_soon(self._mcp.run)
                tasks.start_soon(self._downloads.run)

    def close(self) -> None:
        """End all event streams."""
        self._status_routes.close()
        self._log_routes.close()
        self._mcp.close()

    async def _render_metrics(self) -> bytes:
        supervisors = [
            await metrics.render(queue=(host.waiting, host.serving), process=False)
            for host, metrics in self._supervisor_metrics
        ]
        return b"".join([await self._metrics.render(), *supervisors])


_INVALID_KEY = "invalid API key; create one with `hostler keys add NAME`"


def _gauges(view: ChainView) -> ChainGauges:
    return ChainGauges(
        backends=[
            BackendGauges(
                backend=hop.backend,
                reachable=hop.reachable,
                breakers={(each.model or ""): each.state for each in (hop.breaker, *hop.models)},
                cost=hop.cost,
            )
            for hop in view.hops
        ],
        limit=view.limit,
    )
