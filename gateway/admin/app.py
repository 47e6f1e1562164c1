"""The front desk: everything that the gateway answers about itself, put together, and what runs for it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import anyio

from hostler import __version__
from hostler.gateway.admin.logs import Logs
from hostler.gateway.admin.routes import Dashboard, Operating, TranscriptRoutes
from hostler.gateway.admin.status import ChainView, Status, StatusView
from hostler.gateway.admin.ui import Page
from hostler.gateway.asgi import RouteMatch
from hostler.gateway.auth.keys import KeyRing
from hostler.gateway.auth.middleware import WRONG_KEYS, KeyThrottle
from hostler.gateway.auth.sessions import Sessions
from hostler.gateway.catalog import Catalog
from hostler.gateway.events import Bus
from hostler.gateway.middleware.request_context import InFlightRequests
from hostler.gateway.routing import Router
from hostler.gateway.scheduling.orchestrator import Orchestrator
from hostler.gateway.telemetry.history import History
from hostler.gateway.telemetry.log_buffer import LogBuffer
from hostler.gateway.telemetry.metrics import BackendGauges, ChainGauges, GatewayMetrics
from hostler.gateway.telemetry.transcripts import Transcripts


@runtime_checkable
class KeepsLogs(Protocol):
    """A supervisor that lets us read what its engines write."""

    def logs(self, model: str, follow: bool = False) -> AsyncIterator[str]: ...


class HostCounts(Protocol):
    """What a host has counted, in Prometheus' text format and without what is known of its process."""

    async def render(self, *, process: bool = True) -> bytes: ...


@runtime_checkable
class KeepsCounts(Protocol):
    """A supervisor of this process: nobody else asks it for its metrics."""

    @property
    def metrics(self) -> HostCounts: ...


class AdminApp:
    """Answers operators and onlookers. `run` keeps history, logs and live views going; `close` ends the live views.

    `history` is the file to remember in, `None` to forget at the end. `contents` keeps prompts and answers, if
    that is switched on. `sessions` is `None` where no keys are needed.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        catalog: Catalog,
        hosts: Mapping[str, Orchestrator],
        supervisors: Mapping[str, object],
        chain: Callable[[], ChainView],
        in_progress: InFlightRequests,
        keys: KeyRing | None,
        history: Path | None,
        contents: Transcripts | None = None,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        status = self._status = Status(
            catalog,
            hosts,
            contexts=in_progress.contexts,
            chain=chain,
            version=__version__,
            recording=contents is not None,
            clock=clock,
            wall=wall,
        )
        metrics = GatewayMetrics(
            lambda: [(name, host.waiting, host.serving) for name, host in hosts.items()],
            lambda: _now(chain()),
            version=__version__,
        )
        self.throttle = KeyThrottle(limit=WRONG_KEYS, clock=clock)
        self.sessions = Sessions(keys, clock) if keys is not None else None
        self._history = History(history, moment=status.moment, wall=wall)
        self._logbook = LogBuffer()
        counts = [each.metrics for each in supervisors.values() if isinstance(each, KeepsCounts)]

        async def tell_metrics() -> bytes:
            return b"".join([await metrics.render(), *[await each.render(process=False) for each in counts]])

        self._dashboard = Dashboard(
            status,
            hosts,
            self._history,
            metrics=tell_metrics,
            version=__version__,
        )
        self._logs = Logs(
            self._logbook,
            {name: each.logs for name, each in supervisors.items() if isinstance(each, KeepsLogs)},
        )
        self._operating = Operating(catalog, hosts, in_progress)
        self._contents = contents
        self._transcripts = TranscriptRoutes(contents)
        self._page = Page(
            status.view,
            self.sessions,
            lambda address: self.throttle.refusal(
                address, "this key is not valid; make one with `hostler keys add NAME`"
            ),
        )
        for listener in (metrics.on_event, self._history.hear, self._dashboard.hear):
            bus.listen(listener)

    def surface(self, claims: Iterable[RouteMatch]) -> Router:
        """All routes: those of the protocols, and the gateway's own."""
        parts = (self._dashboard, self._operating, self._logs, self._transcripts, self._page)
        own = [claim for part in parts for claim in part.claims()]
        surface = Router([*claims, *own])
        self._dashboard.describe(surface.claims())
        return surface

    def status(self) -> StatusView:
        """The whole gateway, now."""
        return self._status.view()

    async def answers(self) -> dict[str, dict[str, list[float]]]:
        """How long the last answers of each model took, by backend, as far as the history reaches. Waits for `run`."""
        return await self._history.answers()

    async def run(self) -> None:
        """Until cancelled."""
        with self._logbook.opened():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._history.run)
                if self._contents is not None:
                    tasks.start_soon(self._contents.run)
                tasks.start_soon(self._dashboard.run)

    def close(self) -> None:
        """End every live view."""
        self._dashboard.close()
        self._logs.close()


def _now(view: ChainView) -> ChainGauges:
    """The chain as the counters tell it."""
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
