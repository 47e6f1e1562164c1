"""The supervisor over HTTP: its routes. Who may come in is `guard.py`'s duty, what happens is `Supervisor`'s."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hostler.supervisor.auth import RequestRejected, SupervisorAuthMiddleware, error_response, read_body
from hostler.supervisor.contract import (
    ModelChanged,
    Snapshot,
    StaleEpoch,
    Supervisor,
    SupervisorError,
    SupervisorEvent,
    SupervisorUnreachable,
    SupportsPinning,
    SupportsPulling,
    SwitchMoved,
    UnknownProfile,
)
from hostler.supervisor.events import Emit, EventStreamResponse, LineStreamResponse, run_until
from hostler.supervisor.schemas import (
    AnsweredRequest,
    AnsweredResponse,
    AvailableResponse,
    LocateResponse,
    PinRequest,
    PinResponse,
    PullRequest,
    PullResponse,
    SupervisorErrorBody,
    SwitchRequest,
    SwitchResponse,
    UnloadRequest,
    UnloadResponse,
    encode_error,
)
from hostler.supervisor.switch_stream import PullStream, SwitchStream

LogReader = Callable[[str, bool], AsyncIterator[str]]
"""`logs(model, follow)`: the lines kept of a model's output, and with `follow` those to come, without an end."""

MetricsRenderer = Callable[[], Awaitable[bytes]]

LONGEST_NAME = 200

logger = logging.getLogger(__name__)


def create_app(
    supervisor: Supervisor,
    *,
    token: str | None,
    logs: LogReader | None = None,
    metrics: MetricsRenderer | None = None,
    allowed_hosts: Iterable[str] = (),
) -> Starlette:
    """The supervisor's HTTP surface.

    `token=None` lets in everybody who reaches the port: only for loopback. Setting `app.state.stopping` (an
    `anyio.Event`) ends every stream, and the waiting for orders, so that the server can stop; the orders go on.
    """
    api = _Api(supervisor, logs, metrics)
    routes = [
        Route("/healthz", api.healthz, methods=["GET"]),
        Route("/models/available", api.available, methods=["GET"]),
        Route("/models/status", api.status, methods=["GET"]),
        Route("/models/locate", api.locate, methods=["GET"]),
        Route("/models/switch", api.switch, methods=["POST"]),
        Route("/models/load", api.load, methods=["POST"]),
        Route("/models/unload", api.unload, methods=["POST"]),
        Route("/models/pin", api.pin, methods=["POST"]),
        Route("/models/pull", api.pull, methods=["POST"]),
        Route("/models/answered", api.answered, methods=["POST"]),
        Route("/events", api.events, methods=["GET"]),
    ]
    if logs is not None:
        routes.append(Route("/logs/{model:path}", api.logs, methods=["GET"]))
    if metrics is not None:
        routes.append(Route("/metrics", api.metrics, methods=["GET"]))
    told = (SupervisorError, UnknownProfile, StaleEpoch, SupervisorUnreachable)
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(
                SupervisorAuthMiddleware, token=token, allowed_hosts=tuple(allowed_hosts), open_paths=("/healthz",)
            ),
        ],
        exception_handlers={
            HTTPException: _http_error,
            RequestRejected: _refused,
            Exception: _told,
            **dict.fromkeys(told, _told),
        },
    )
    app.router.redirect_slashes = False
    app.state.stopping = api.stopping
    return app


class _Api:
    """The handlers. Nothing here changes but the event that ends streams."""

    def __init__(self, supervisor: Supervisor, logs: LogReader | None, metrics: MetricsRenderer | None) -> None:
        self._supervisor = supervisor
        self._logs = logs
        self._metrics = metrics
        self.stopping = anyio.Event()

    async def healthz(self, request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def available(self, request: Request) -> Response:
        return _json(AvailableResponse(models=(await self._supervisor.status()).profiles))

    async def status(self, request: Request) -> Response:
        return _json(await self._supervisor.status())

    async def locate(self, request: Request) -> Response:
        model = await self._known(request.query_params.get("model", ""))
        return _json(LocateResponse(address=await self._supervisor.locate(model)))

    async def switch(self, request: Request) -> Response:
        """Progress as it happens if the client takes it, else the end of it."""
        order = await read_body(request, SwitchRequest)
        return await self._switch(request, order, await self._known(order.model, epoch=order.epoch))

    async def load(self, request: Request) -> Response:
        """As `switch`, for people: what failed too often is tried again at once."""
        order = await read_body(request, SwitchRequest)
        model = await self._known(order.model, epoch=order.epoch)
        states = {each.model: each.state for each in (await self._supervisor.status()).models}
        if states.get(model) == "failed":
            # Nothing of it runs; this forgets the failures.
            await self._supervisor.unload(model, epoch=order.epoch)
        return await self._switch(request, order, model)

    async def _switch(self, request: Request, order: SwitchRequest, model: str) -> Response:
        evict = [await self._known(name) for name in order.evict]
        switch = SwitchStream(self._supervisor, model, evict, order.epoch)
        if "text/event-stream" in request.headers.get("accept", ""):
            return EventStreamResponse(switch.narrate, self.stopping)
        answers: list[SwitchResponse] = []

        async def wait() -> None:
            answers.append(await switch.run())

        await run_until(self.stopping, wait)
        return _json(self._answered(answers))

    async def unload(self, request: Request) -> Response:
        order = await read_body(request, UnloadRequest)
        model = await self._known(order.model, epoch=order.epoch)
        answers: list[UnloadResponse] = []

        async def wait() -> None:
            await self._supervisor.unload(model, epoch=order.epoch)
            answers.append(UnloadResponse(model=model))

        await run_until(self.stopping, wait)
        return _json(self._answered(answers))

    async def pin(self, request: Request) -> Response:
        order = await read_body(request, PinRequest)
        model = await self._known(order.model, epoch=order.epoch)
        supervisor = self._supervisor
        if not isinstance(supervisor, SupportsPinning):
            raise RequestRejected(501, "not_supported", "this supervisor pins models by their profiles only")
        remembered = await supervisor.pin(model, order.pinned, epoch=order.epoch)
        return _json(PinResponse(model=model, pinned=order.pinned, remembered=remembered))

    async def pull(self, request: Request) -> Response:
        """Have a model's file on this host: how far it is as it comes if the client takes events, else the end of it."""
        order = await read_body(request, PullRequest)
        model = await self._known(order.model)
        supervisor = self._supervisor
        if not isinstance(supervisor, SupportsPulling):
            raise RequestRejected(501, "not_supported", "this supervisor fetches files only when a model is started")
        if "text/event-stream" in request.headers.get("accept", ""):
            return EventStreamResponse(PullStream(supervisor, model).narrate, self.stopping)
        answers: list[PullResponse] = []

        async def wait() -> None:
            await supervisor.pull(model)
            answers.append(PullResponse(model=model))

        await run_until(self.stopping, wait)
        return _json(self._answered(answers))

    async def answered(self, request: Request) -> Response:
        told = await read_body(request, AnsweredRequest)
        model = await self._known(told.model)
        await self._supervisor.answered(model, generation=told.generation, cached=told.cached, prompt=told.prompt)
        return _json(AnsweredResponse())

    async def events(self, request: Request) -> Response:
        async def narrate(emit: Emit) -> None:
            async with self._supervisor.events() as events:
                async for event in events:
                    await emit(_NAMES[type(event)], event)

        return EventStreamResponse(narrate, self.stopping)

    async def logs(self, request: Request) -> Response:
        assert self._logs is not None
        model = await self._known(request.path_params["model"])
        follow = request.query_params.get("follow", "").lower() in ("1", "true", "yes")
        return LineStreamResponse(self._logs(model, follow), self.stopping)

    async def metrics(self, request: Request) -> Response:
        assert self._metrics is not None
        return Response(await self._metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @staticmethod
    def _answered(answers: Sequence[msgspec.Struct]) -> msgspec.Struct:
        if not answers:
            raise RequestRejected(503, "stopping", "the supervisor is stopping; ask again when it is back")
        return answers[0]

    async def _known(self, name: str, *, epoch: int | None = None) -> str:
        """The profile that `name` means, which may be an alias. Only names from the host's own list go further."""
        if not name:
            raise RequestRejected(400, "invalid_request", 'no model named: say which one as "model"')
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise RequestRejected(
                400, "invalid_request", f"a model's name has at most {LONGEST_NAME} printable characters"
            )
        host = await self._supervisor.status()
        if epoch is not None and epoch < host.epoch:
            raise StaleEpoch(f"epoch {epoch} is over: another gateway gave orders with epoch {host.epoch}")
        names = {alias: profile.name for profile in host.profiles for alias in profile.aliases}
        names |= {profile.name: profile.name for profile in host.profiles}
        if name not in names:
            known = tuple(sorted(profile.name for profile in host.profiles))
            listed = f"{len(known)} models are: {', '.join(known)}" if known else "this host has no profiles"
            raise RequestRejected(404, "unknown_profile", f'model "{name}" is unknown; {listed}', models=known)
        return names[name]


_NAMES: dict[type[SupervisorEvent], str] = {Snapshot: "snapshot", ModelChanged: "model", SwitchMoved: "switch"}


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRejected)
    return error_response(error.status, error.body)


async def _told(request: Request, error: Exception) -> Response:
    return error_response(*encode_error(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind, message = {
        404: ("not_found", "there is nothing at this address"),
        405: ("method_not_allowed", f"this address does not take {request.method}"),
    }.get(error.status_code, ("error", error.detail))
    answer = error_response(error.status_code, SupervisorErrorBody(type=kind, message=message))
    answer.headers.update(error.headers or {})
    return answer
