"""The supervisor over HTTP: routes and streams. Who may come in is `guard.py`'s duty, what happens is `Supervisor`'s."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

import anyio
import msgspec
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hostler.profiles.sources import FetchProgress
from hostler.supervisor.contract import (
    EngineAddress,
    ModelChanged,
    Pins,
    Pulls,
    Snapshot,
    StaleEpoch,
    Supervisor,
    SupervisorError,
    SupervisorEvent,
    SupervisorUnreachable,
    SwitchMoved,
    UnknownProfile,
)
from hostler.supervisor.guard import Guard, Refusal, read_body, refusal_answer
from hostler.supervisor.wire import (
    Available,
    ErrorAnswer,
    ErrorBody,
    FirstAnswer,
    Heard,
    Located,
    PinAnswer,
    PinOrder,
    PullAnswer,
    PullOrder,
    SwitchAnswer,
    SwitchOrder,
    UnloadAnswer,
    UnloadOrder,
    describe,
)

Logs = Callable[[str, bool], AsyncIterator[str]]
"""`logs(model, follow)`: the lines kept of a model's output, and with `follow` those to come, without an end."""

Metrics = Callable[[], str | bytes]

Emit = Callable[[str, msgspec.Struct], Awaitable[None]]

PING_S = 10.0
SEND_TIMEOUT_S = 30.0
LAST_EVENT_S = 1.0
LOG_BUFFER = 1000
LONGEST_NAME = 200

log = logging.getLogger(__name__)


def create_app(
    supervisor: Supervisor,
    *,
    token: str | None,
    logs: Logs | None = None,
    metrics: Metrics | None = None,
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
        Route("/models/load", api.switch, methods=["POST"]),
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
            Middleware(Guard, token=token, allowed_hosts=tuple(allowed_hosts), open_paths=("/healthz",)),
        ],
        exception_handlers={
            HTTPException: _http_error,
            Refusal: _refused,
            Exception: _told,
            **dict.fromkeys(told, _told),
        },
    )
    app.router.redirect_slashes = False
    app.state.stopping = api.stopping
    return app


class _Api:
    """The handlers. Nothing here changes but the event that ends streams."""

    def __init__(self, supervisor: Supervisor, logs: Logs | None, metrics: Metrics | None) -> None:
        self._supervisor = supervisor
        self._logs = logs
        self._metrics = metrics
        self.stopping = anyio.Event()

    async def healthz(self, request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def available(self, request: Request) -> Response:
        return _json(Available(models=(await self._supervisor.status()).profiles))

    async def status(self, request: Request) -> Response:
        return _json(await self._supervisor.status())

    async def locate(self, request: Request) -> Response:
        model = await self._known(request.query_params.get("model", ""))
        return _json(Located(address=await self._supervisor.locate(model)))

    async def switch(self, request: Request) -> Response:
        """`/models/switch` and `/models/load`: progress as it happens if the client takes it, else the end of it."""
        order = await read_body(request, SwitchOrder)
        model = await self._known(order.model, epoch=order.epoch)
        evict = [await self._known(name) for name in order.evict]
        switch = _Switch(self._supervisor, model, evict, order.epoch)
        if "text/event-stream" in request.headers.get("accept", ""):
            return _Events(switch.narrate, self.stopping)
        answers: list[SwitchAnswer] = []

        async def wait() -> None:
            answers.append(await switch.run())

        await _until(self.stopping, wait)
        return _json(self._answered(answers))

    async def unload(self, request: Request) -> Response:
        order = await read_body(request, UnloadOrder)
        model = await self._known(order.model, epoch=order.epoch)
        answers: list[UnloadAnswer] = []

        async def wait() -> None:
            await self._supervisor.unload(model, epoch=order.epoch)
            answers.append(UnloadAnswer(model=model))

        await _until(self.stopping, wait)
        return _json(self._answered(answers))

    async def pin(self, request: Request) -> Response:
        order = await read_body(request, PinOrder)
        model = await self._known(order.model, epoch=order.epoch)
        supervisor = self._supervisor
        if not isinstance(supervisor, Pins):
            raise Refusal(501, "not_supported", "this supervisor pins models by their profiles only")
        remembered = await supervisor.pin(model, order.pinned, epoch=order.epoch)
        return _json(PinAnswer(model=model, pinned=order.pinned, remembered=remembered))

    async def pull(self, request: Request) -> Response:
        """Have a model's file on this host: how far it is as it comes if the client takes events, else the end of it."""
        order = await read_body(request, PullOrder)
        model = await self._known(order.model)
        supervisor = self._supervisor
        if not isinstance(supervisor, Pulls):
            raise Refusal(501, "not_supported", "this supervisor fetches files only when a model is started")
        if "text/event-stream" in request.headers.get("accept", ""):
            return _Events(_Pull(supervisor, model).narrate, self.stopping)
        answers: list[PullAnswer] = []

        async def wait() -> None:
            await supervisor.pull(model)
            answers.append(PullAnswer(model=model))

        await _until(self.stopping, wait)
        return _json(self._answered(answers))

    async def answered(self, request: Request) -> Response:
        told = await read_body(request, FirstAnswer)
        model = await self._known(told.model)
        await self._supervisor.answered(model, generation=told.generation, cached=told.cached, prompt=told.prompt)
        return _json(Heard())

    async def events(self, request: Request) -> Response:
        async def narrate(emit: Emit) -> None:
            async with self._supervisor.events() as events:
                async for event in events:
                    await emit(_NAMES[type(event)], event)

        return _Events(narrate, self.stopping)

    async def logs(self, request: Request) -> Response:
        assert self._logs is not None
        model = await self._known(request.path_params["model"])
        follow = request.query_params.get("follow", "").lower() in ("1", "true", "yes")
        return _Lines(self._logs(model, follow), self.stopping)

    async def metrics(self, request: Request) -> Response:
        assert self._metrics is not None
        return Response(self._metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @staticmethod
    def _answered(answers: Sequence[msgspec.Struct]) -> msgspec.Struct:
        if not answers:
            raise Refusal(503, "stopping", "the supervisor is stopping; ask again when it is back")
        return answers[0]

    async def _known(self, name: str, *, epoch: int | None = None) -> str:
        """The profile that `name` means, which may be an alias. Only names from the host's own list go further."""
        if not name:
            raise Refusal(400, "invalid_request", 'no model named: say which one as "model"')
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise Refusal(400, "invalid_request", f"a model's name has at most {LONGEST_NAME} printable characters")
        host = await self._supervisor.status()
        if epoch is not None and epoch < host.epoch:
            raise StaleEpoch(f"epoch {epoch} is over: another gateway gave orders with epoch {host.epoch}")
        names = {alias: profile.name for profile in host.profiles for alias in profile.aliases}
        names |= {profile.name: profile.name for profile in host.profiles}
        if name not in names:
            known = tuple(sorted(profile.name for profile in host.profiles))
            listed = f"{len(known)} models are: {', '.join(known)}" if known else "this host has no profiles"
            raise Refusal(404, "unknown_profile", f'model "{name}" is unknown; {listed}', models=known)
        return names[name]


_NAMES: dict[type[SupervisorEvent], str] = {Snapshot: "snapshot", ModelChanged: "model", SwitchMoved: "switch"}


class _Switch:
    """One order: carried out by the supervisor, watched through its events."""

    def __init__(self, supervisor: Supervisor, model: str, evict: Sequence[str], epoch: int | None) -> None:
        self._supervisor = supervisor
        self._model = model
        self._evict = evict
        self._epoch = epoch
        self._ready_generation: int | None = None
        self._last: SwitchMoved | None = None

    async def run(self, emit: Emit | None = None) -> SwitchAnswer:
        """Give the order, pass on its phases, answer when the model is ready. Raises what `Supervisor.switch` does."""
        begun = time.monotonic()
        async with self._supervisor.events() as events:
            self._see(await anext(events))
            address: EngineAddress | None = None
            error: Exception | None = None
            ended = anyio.Event()

            async def watch() -> None:
                async for event in events:
                    if isinstance(event, SwitchMoved) and event.model == self._model:
                        self._last = event
                        if event.phase in ("ready", "failed"):
                            ended.set()
                        elif emit is not None:
                            await emit("phase", event)
                ended.set()

            async with anyio.create_task_group() as watching:
                watching.start_soon(watch)
                try:
                    address = await self._supervisor.switch(self._model, evict=self._evict, epoch=self._epoch)
                except Exception as raised:  # taken out of the group by hand, so that it comes out as itself
                    error = raised
                if address is not None and address.generation != self._ready_generation:
                    with anyio.move_on_after(LAST_EVENT_S):
                        await ended.wait()
                watching.cancel_scope.cancel()
        if error is not None:
            raise error
        assert address is not None
        spent = self._last.spent if self._last is not None and self._last.phase == "ready" else {}
        return SwitchAnswer(address=address, elapsed_s=round(time.monotonic() - begun, 6), spent=spent)

    async def narrate(self, emit: Emit) -> None:
        """`run` as events: `phase`s, then `ready` with the answer or `failed` with the error."""
        try:
            answer = await self.run(emit)
        except Exception as error:
            status, body = describe(error)
            if status == 500:
                log.exception("switch to %s", self._model)
            await emit("failed", ErrorAnswer(error=body))
        else:
            await emit("ready", answer)

    def _see(self, first: SupervisorEvent) -> None:
        """A model that is ready before the order is given answers at once, without phases to wait for."""
        for status in first.host.models if isinstance(first, Snapshot) else ():
            if status.model == self._model and status.state == "ready":
                self._ready_generation = status.generation


class _Pull:
    """A file on its way, told as events: `progress`, then `ready` or `failed`."""

    def __init__(self, supervisor: Pulls, model: str) -> None:
        self._supervisor = supervisor
        self._model = model
        self._news = anyio.Event()
        self._last: FetchProgress | None = None

    async def narrate(self, emit: Emit) -> None:
        try:
            async with anyio.create_task_group() as telling:
                telling.start_soon(self._tell, emit)
                error = await self._pull()
                telling.cancel_scope.cancel()
            if error is not None:
                raise error
        except Exception as failed:
            status, body = describe(failed)
            if status == 500:
                log.exception("pull of %s", self._model)
            await emit("failed", ErrorAnswer(error=body))
        else:
            await emit("ready", PullAnswer(model=self._model))

    async def _pull(self) -> Exception | None:
        try:
            await self._supervisor.pull(self._model, report=self._hear)
        except Exception as error:  # taken out of the group by hand, so that it comes out as itself
            return error
        return None

    def _hear(self, progress: FetchProgress) -> None:
        self._last = progress
        self._news.set()

    async def _tell(self, emit: Emit) -> None:
        """The newest of what there is to tell: whoever reads slowly misses what is in between."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            if self._last is not None:
                await emit("progress", self._last)


class _Events(EventSourceResponse):
    """Server-sent events told by a coroutine, which is cancelled when the client leaves or the server stops."""

    def __init__(self, narrate: Callable[[Emit], Awaitable[None]], stopping: anyio.Event) -> None:
        sender, receiver = anyio.create_memory_object_stream[ServerSentEvent](0)

        async def emit(name: str, value: msgspec.Struct) -> None:
            await sender.send(ServerSentEvent(msgspec.json.encode(value).decode(), event=name, sep="\n"))

        async def produce() -> None:
            async with sender:
                await _until(stopping, lambda: narrate(emit))

        super().__init__(
            receiver,
            sep="\n",
            ping=PING_S,
            ping_message_factory=lambda: ServerSentEvent(comment="", sep="\n"),
            data_sender_callable=produce,
            send_timeout=SEND_TIMEOUT_S,
        )
        self._streams = (sender, receiver)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("a client stopped reading %s and was left", scope["path"])
        finally:
            for stream in self._streams:
                stream.close()


class _Lines(Response):
    """Lines of text as they come. A client that reads too slowly loses the oldest and is told how many."""

    media_type = "text/plain; charset=utf-8"

    def __init__(self, lines: AsyncIterator[str], stopping: anyio.Event) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._lines = lines
        self._stopping = stopping
        self._kept: deque[str] = deque(maxlen=LOG_BUFFER)
        self._lost = 0
        self._over = False
        self._news = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        whole = scope["method"] == "HEAD"
        if not whole:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(leave)
                tasks.start_soon(_until, self._stopping, self._collect)
                whole = await self._pass_on(send)
                tasks.cancel_scope.cancel()
        if whole:
            await send({"type": "http.response.body", "body": b""})

    async def _pass_on(self, send: Send) -> bool:
        """Send lines until there are no more; `False` when the client has stopped reading."""
        while self._kept or not self._over:
            if not self._kept:
                await self._news.wait()
            self._news = anyio.Event()
            if not await self._write(send):
                return False
        return True

    async def _collect(self) -> None:
        """Take lines as fast as they come: whoever produces them never waits for the client."""
        try:
            async for line in self._lines:
                if len(self._kept) == LOG_BUFFER:
                    self._lost += 1
                self._kept.append(line)
                self._news.set()
        except Exception:
            log.exception("the log lines of a model ended early")
        finally:
            self._over = True
            self._news.set()

    async def _write(self, send: Send) -> bool:
        lines, lost = list(self._kept), self._lost
        self._kept.clear()
        self._lost = 0
        note = [f"[{lost} lines lost: this reader was too slow]"] if lost else []
        text = "".join(f"{line}\n" for line in note + lines)
        if not text:
            return True
        with anyio.move_on_after(SEND_TIMEOUT_S):
            await send({"type": "http.response.body", "body": text.encode(errors="replace"), "more_body": True})
            return True
        return False


async def _until(stopping: anyio.Event, do: Callable[[], Awaitable[None]]) -> None:
    """Run `do` to its end or up to `stopping`. What it raises comes out as itself, not in a group."""
    error: Exception | None = None

    async def stop() -> None:
        await stopping.wait()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop)
        try:
            await do()
        except Exception as raised:
            error = raised
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refusal_answer(error.status, error.body)


async def _told(request: Request, error: Exception) -> Response:
    return refusal_answer(*describe(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind, message = {
        404: ("not_found", "there is nothing at this address"),
        405: ("method_not_allowed", f"this address does not take {request.method}"),
    }.get(error.status_code, ("error", error.detail))
    answer = refusal_answer(error.status_code, ErrorBody(type=kind, message=message))
    answer.headers.update(error.headers or {})
    return answer
