"""The supervisor's HTTP API: its routes around a `Supervisor`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final, TypeVar

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Lifespan

from hostler.adapters.errors import GatewayError
from hostler.supervisor.auth import (
    RequestRejected,
    SupervisorAuthMiddleware,
    decode_body,
    error_response,
    read_body,
    read_content,
)
from hostler.supervisor.contract import (
    LEASE_TOO_LONG,
    LONGEST_LEASE_S,
    DevicesRead,
    EngineAddress,
    Failure,
    FailureKind,
    ModelChanged,
    Snapshot,
    State,
    Supervisor,
    SupervisorError,
    SupervisorEvent,
    SupervisorUnreachable,
    SupportsDraining,
    SupportsPinning,
    SupportsPulling,
    SwitchMoved,
    UnknownProfile,
)
from hostler.supervisor.events import Emit, EventStreamResponse, LineStreamResponse, run_until
from hostler.supervisor.lease_frames import MAX_NAME, MEDIA_TYPE, PATH, PROTOCOL_HEADER, PROTOCOL_VERSION
from hostler.supervisor.lease_server import LeaseServer
from hostler.supervisor.lease_session import LeaseSession
from hostler.supervisor.other_releases import OtherReleases, is_old_order
from hostler.supervisor.scheduling.errors import refusal_error
from hostler.supervisor.scheduling.types import Refuse
from hostler.supervisor.schemas import (
    AvailableResponse,
    DrainRequest,
    DrainResponse,
    ForecastResponse,
    LeaseEndRequest,
    LeaseEndResponse,
    LeaseRequest,
    PinRequest,
    PinResponse,
    PullRequest,
    PullResponse,
    SupervisorErrorBody,
    SwitchRequest,
    UnloadRequest,
    UnloadResponse,
    encode_error,
)
from hostler.supervisor.switch_stream import PullStream, SwitchStream

LogReader = Callable[[str, bool], AsyncIterator[str]]
"""`logs(model, follow)`: a model's buffered log lines; with `follow` future ones, too, without end."""

MetricsRenderer = Callable[[], Awaitable[bytes]]

#: The name under which operators queue for a model.
_OPERATOR = "operator"

T = TypeVar("T")

#: `Retry-After` while it stops, in seconds: it usually starts again at once.
_STOP_RETRY_S: Final = 2.0


def create_app(
    supervisor: Supervisor,
    leases: LeaseServer,
    *,
    token: str | None,
    logs: LogReader | None = None,
    metrics: MetricsRenderer | None = None,
    allowed_hosts: Iterable[str] = (),
    lifespan: Lifespan[Starlette] | None = None,
    cluster_token: str | None = None,
) -> Starlette:
    """The HTTP API of `supervisor`, whose models are used by `leases`, which must run.

    `cluster_token` is valid as well as `token`. Without either, every client that reaches the port is accepted: only for
    loopback. Setting `app.state.stopping` (an `anyio.Event`) ends all streams and pending requests, so that the server
    can stop; switches go on.
    """
    api = _Api(supervisor, leases, logs, metrics)
    tokens = tuple(each for each in (token, cluster_token) if each is not None)
    routes = [
        Route("/healthz", api.healthz, methods=["GET"]),
        Route("/models/available", api.available, methods=["GET"]),
        Route("/models/status", api.status, methods=["GET"]),
        Route("/models/switch", api.switch, methods=["POST"]),
        Route("/models/load", api.load, methods=["POST"]),
        Route("/models/unload", api.unload, methods=["POST"]),
        Route("/models/pin", api.pin, methods=["POST"]),
        Route("/drain", api.drain, methods=["POST"]),
        Route("/models/lease", api.lease_model, methods=["POST"]),
        Route("/models/lease/end", api.end_lease, methods=["POST"]),
        Route("/models/pull", api.pull, methods=["POST"]),
        Route("/models/forecast", api.forecast, methods=["GET"]),
        Route(PATH, api.leases, methods=["POST"]),
        Route("/models/locate", api.outdated, methods=["GET"]),
        Route("/models/answered", api.outdated, methods=["POST"]),
        Route("/events", api.events, methods=["GET"]),
    ]
    if logs is not None:
        routes.append(Route("/logs/{model:path}", api.logs, methods=["GET"]))
    if metrics is not None:
        routes.append(Route("/metrics", api.metrics, methods=["GET"]))
    expected = (SupervisorError, UnknownProfile, SupervisorUnreachable)
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(
                SupervisorAuthMiddleware, tokens=tokens, allowed_hosts=tuple(allowed_hosts), open_paths=("/healthz",)
            ),
        ],
        exception_handlers={
            HTTPException: _http_error,
            RequestRejected: _rejected,
            Exception: _failed,
            GatewayError: _unavailable,
            **dict.fromkeys(expected, _failed),
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.stopping = api.stopping
    return app


class _Api:
    """The handlers."""

    def __init__(
        self, supervisor: Supervisor, leases: LeaseServer, logs: LogReader | None, metrics: MetricsRenderer | None
    ) -> None:
        self._supervisor = supervisor
        self._leases = leases
        self._logs = logs
        self._metrics = metrics
        self._releases = OtherReleases()
        self.stopping = anyio.Event()

    async def healthz(self, request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def available(self, request: Request) -> Response:
        return _json(AvailableResponse(models=(await self._supervisor.status()).profiles))

    async def status(self, request: Request) -> Response:
        return _json(await self._supervisor.status())

    async def switch(self, request: Request) -> Response:
        """With phases as events if the client accepts them, else the result alone."""
        body = await self._read_order(request, SwitchRequest)
        return await self._switch(request, await self._resolve(body.model))

    async def load(self, request: Request) -> Response:
        """As `switch`, for operators: a model in backoff is tried again at once."""
        model = await self._resolve((await self._read_order(request, SwitchRequest)).model)
        if (await self._states()).get(model) == "failed":
            await self._forgive(model)
        return await self._switch(request, model)

    async def _switch(self, request: Request, model: str) -> Response:
        switch = SwitchStream(self._supervisor, model, self._load)
        if "text/event-stream" in request.headers.get("accept", ""):
            return EventStreamResponse(switch.stream, self.stopping)
        return _json(await self._wait_for(switch.run))

    async def unload(self, request: Request) -> Response:
        body = await self._read_order(request, UnloadRequest)
        model, host = await self._resolve(body.model), self._leases.host

        async def stop() -> None:
            await host.unload(model, force=body.force)
            # What the scheduler counts as stopped may have failed, or run unnoticed. A new load is left alone.
            phases = {view.model: view.phase for view in host.models()}
            if phases.get(model) == "cold" and (await self._states()).get(model) != "stopped":
                await self._forgive(model)

        await self._wait_for(stop)
        self._leases.mark_changed()
        return _json(UnloadResponse(model=model, state="draining" if host.is_serving(model) else "stopped"))

    async def forecast(self, request: Request) -> Response:
        model = await self._resolve(request.query_params.get("model", ""))
        return _json(ForecastResponse(forecast=await self._leases.host.estimate_switch(model)))

    async def leases(self, request: Request) -> Response:
        """Connect a gateway: see `lease_frames`."""
        version = request.headers.get(PROTOCOL_HEADER, "")
        if version != str(PROTOCOL_VERSION):
            raise self._releases.refusal(request, version)
        if request.headers.get("content-type") != MEDIA_TYPE:
            raise RequestRejected(415, "unsupported_media", f"send frames: Content-Type: {MEDIA_TYPE}")
        return LeaseSession(self._leases, self.stopping)

    async def outdated(self, request: Request) -> Response:
        """What gateways before version 1 of the protocol call."""
        raise self._releases.refusal(request)

    async def _read_order(self, request: Request, kind: type[T]) -> T:
        """The body of an operator's request, which gateways before version 1 send with more fields."""
        content = await read_content(request)
        try:
            return decode_body(content, kind)
        except RequestRejected:
            if is_old_order(content):
                raise self._releases.refusal(request) from None
            raise

    async def pin(self, request: Request) -> Response:
        body = await self._read_order(request, PinRequest)
        model = await self._resolve(body.model)
        supervisor = self._supervisor
        if not isinstance(supervisor, SupportsPinning):
            raise RequestRejected(501, "not_supported", "this supervisor pins models only by their profiles")
        remembered = await supervisor.pin(model, body.pinned)
        return _json(PinResponse(model=model, pinned=body.pinned, remembered=remembered))

    async def drain(self, request: Request) -> Response:
        body, supervisor = await read_body(request, DrainRequest), self._supervisor
        if not isinstance(supervisor, SupportsDraining):
            raise RequestRejected(501, "not_supported", "this supervisor cannot be drained")
        remembered = await supervisor.drain(body.draining)
        return _json(DrainResponse(draining=body.draining, remembered=remembered))

    async def lease_model(self, request: Request) -> Response:
        body = await read_body(request, LeaseRequest)
        if body.seconds > LONGEST_LEASE_S:
            raise RequestRejected(400, "invalid_request", f"seconds: {LEASE_TOO_LONG}")
        model, host = await self._resolve(body.model), self._leases.host
        return _json(await self._wait_for(lambda: host.lease_model(model, holder=body.holder, seconds=body.seconds)))

    async def end_lease(self, request: Request) -> Response:
        body = await read_body(request, LeaseEndRequest)
        return _json(LeaseEndResponse(ended=await self._leases.host.end_lease(body.id)))

    async def pull(self, request: Request) -> Response:
        """Download a model's file: with progress as events if the client accepts them, else the result alone."""
        body = await read_body(request, PullRequest)
        model = await self._resolve(body.model)
        supervisor = self._supervisor
        if not isinstance(supervisor, SupportsPulling):
            raise RequestRejected(501, "not_supported", "this supervisor downloads files only when a model is started")
        if "text/event-stream" in request.headers.get("accept", ""):
            return EventStreamResponse(PullStream(supervisor, model).stream, self.stopping)
        await self._wait_for(lambda: supervisor.pull(model))
        return _json(PullResponse(model=model))

    async def events(self, request: Request) -> Response:
        # The request of a gateway before version 1, which would count this host as reachable.
        if (request.headers.get("accept"), request.headers.get("accept-encoding")) == ("text/event-stream", "identity"):
            raise self._releases.refusal(request)

        async def produce(emit: Emit) -> None:
            async with self._supervisor.events() as events:
                async for event in events:
                    await emit(_NAMES[type(event)], event)

        return EventStreamResponse(produce, self.stopping)

    async def logs(self, request: Request) -> Response:
        assert self._logs is not None
        model = await self._resolve(request.path_params["model"])
        follow = request.query_params.get("follow", "").lower() in ("1", "true", "yes")
        return LineStreamResponse(self._logs(model, follow), self.stopping)

    async def metrics(self, request: Request) -> Response:
        assert self._metrics is not None
        return Response(await self._metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _wait_for(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`. Raises `RequestRejected` if the server stops before."""
        results: list[T] = []

        async def run() -> None:
            results.append(await work())

        await run_until(self.stopping, run)
        if not results:
            raise RequestRejected(
                503, "stopping", "the supervisor is stopping; try again when it is back", retry_after_s=_STOP_RETRY_S
            )
        return results[0]

    async def _load(self, model: str) -> EngineAddress:
        """Queue for the model as requests do, until it is ready. Raises `SupervisorError`, `UnknownProfile`."""
        lease = self._leases.host.lease(model, client=_OPERATOR)
        try:
            while not await lease.wait(60.0):
                lease.take_notification()
            if lease.refusal is not None:
                raise _order_error(lease.refusal)
            return lease.address()
        finally:
            lease.release()
            self._leases.mark_changed()

    async def _states(self) -> dict[str, State]:
        return {each.model: each.state for each in (await self._supervisor.status()).models}

    async def _forgive(self, model: str) -> None:
        """Reset the failures of a model that no request uses, and stop what is left of it."""
        await self._supervisor.unload(model)
        self._leases.host.forgive(model)

    async def _resolve(self, name: str) -> str:
        """The profile that `name` names, directly or as an alias. Only names of the host's own list are passed on."""
        if not name:
            raise RequestRejected(400, "invalid_request", 'no model given; set "model"')
        if len(name) > MAX_NAME or not name.isprintable():
            raise RequestRejected(400, "invalid_request", f"a model name has at most {MAX_NAME} printable characters")
        host = await self._supervisor.status()
        names = {alias: profile.name for profile in host.profiles for alias in profile.aliases}
        names |= {profile.name: profile.name for profile in host.profiles}
        if name not in names:
            known = tuple(sorted(profile.name for profile in host.profiles))
            listed = f"{len(known)} models are: {', '.join(known)}" if known else "this host has no profiles"
            raise RequestRejected(404, "unknown_profile", f'model "{name}" is unknown; {listed}', models=known)
        return names[name]


_NAMES: dict[type[SupervisorEvent], str] = {
    Snapshot: "snapshot", ModelChanged: "model", SwitchMoved: "switch", DevicesRead: "devices",
}  # fmt: skip


def _order_error(refusal: Refuse) -> Exception:
    if refusal.reason == "unknown_model":
        return UnknownProfile(f"there is no profile {refusal.model!r} any more")
    if refusal.failure is not None:
        return SupervisorError(refusal.failure)
    kind: FailureKind = "does_not_fit" if refusal.reason == "does_not_fit" else "cancelled"
    message = refusal_error(refusal, "this host").message
    return SupervisorError(Failure(kind=kind, message=message, retry_after_s=refusal.retry_after_s or None))


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _rejected(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRejected)
    return error_response(error.status, error.body)


async def _unavailable(request: Request, error: Exception) -> Response:
    """What the host's scheduler refuses."""
    assert isinstance(error, GatewayError)
    failure = Failure(kind="cancelled", message=error.message, retry_after_s=error.retry_after_s)
    return error_response(*encode_error(SupervisorError(failure)))


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(*encode_error(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind, message = {
        404: ("not_found", "no such path"),
        405: ("method_not_allowed", f"{request.method} is not allowed here"),
    }.get(error.status_code, ("error", error.detail))
    response = error_response(error.status_code, SupervisorErrorBody(type=kind, message=message))
    response.headers.update(error.headers or {})
    return response
