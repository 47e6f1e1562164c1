"""What the supervisor's tests share: a real HTTP server on a free port, and a supervisor that only pretends."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import anyio.abc
import msgspec
import pytest
import uvicorn
from starlette.applications import Starlette

from hostler.supervisor.contract import (
    EngineAddress,
    Failure,
    HostStatus,
    ModelStatus,
    ProfileInfo,
    Snapshot,
    StaleEpoch,
    SupervisorError,
    SupervisorEvent,
    SwitchMoved,
    UnknownProfile,
)

Serve = Callable[[Starlette], AbstractAsyncContextManager[str]]


@pytest.fixture
def serve() -> Serve:
    """`async with serve(app) as url:` runs an app on a free port of loopback."""
    return _serve


@asynccontextmanager
async def _serve(app: Starlette) -> AsyncIterator[str]:
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=5, server_header=False
    )
    server = uvicorn.Server(config)
    started = anyio.Event()
    startup = server.startup

    async def tell(sockets: list[object] | None = None) -> None:
        await startup(sockets=sockets)  # type: ignore[arg-type]  # uvicorn's own argument, passed on
        started.set()

    server.startup = tell  # type: ignore[method-assign]  # uvicorn has no hook for "listening"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        await started.wait()
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            stopping = getattr(app.state, "stopping", None)
            if stopping is not None:
                stopping.set()
            server.should_exit = True


class PretendedHost:
    """A `Supervisor` in memory: a switch takes as long as `gate` is closed, and joins as the contract promises."""

    def __init__(self) -> None:
        self.profiles = (
            ProfileInfo(name="alpha", aliases=("first",), context=4096, load_s=1.5),
            ProfileInfo(name="beta"),
        )
        self.ready: dict[str, EngineAddress] = {}
        self.epoch = 0
        self.gate = anyio.Event()
        self.gate.set()
        self.failure: Failure | None = None
        self.starts = 0
        self.finished = 0
        self.evicted: list[str] = []
        self._listeners_changed = anyio.Event()
        self._listeners: list[anyio.abc.ObjectSendStream[SupervisorEvent]] = []
        self._orders: dict[str, anyio.Event] = {}
        self._outcomes: dict[str, EngineAddress | SupervisorError] = {}
        self._tasks: anyio.abc.TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PretendedHost]:
        async with anyio.create_task_group() as self._tasks:
            yield self
            self._tasks.cancel_scope.cancel()

    async def status(self) -> HostStatus:
        return self.host()

    def host(self) -> HostStatus:
        models = tuple(
            ModelStatus(model=name, state="ready", since=1.0, generation=at.generation)
            for name, at in self.ready.items()
        )
        return HostStatus(profiles=self.profiles, models=models, epoch=self.epoch)

    async def switch(self, model: str, *, evict: Sequence[str] = (), epoch: int | None = None) -> EngineAddress:
        self._admit(model, epoch)
        self.evicted.extend(evict)
        if model in self.ready:
            return self.ready[model]
        done = self._orders.get(model)
        if done is None:
            done = self._orders[model] = anyio.Event()
            assert self._tasks is not None
            self._tasks.start_soon(self._carry_out, model, done)
        await done.wait()
        outcome = self._outcomes[model]
        if isinstance(outcome, SupervisorError):
            raise SupervisorError(outcome.failure)
        return outcome

    async def _carry_out(self, model: str, done: anyio.Event) -> None:
        self.starts += 1
        moved = SwitchMoved(id=f"s{self.starts}", model=model, phase="starting")
        self.publish(moved)
        self.publish(msgspec.structs.replace(moved, phase="loading", percent=50.0, eta_s=0.7))
        await self.gate.wait()
        if self.failure is not None:
            self._outcomes[model] = SupervisorError(self.failure)
            self.publish(msgspec.structs.replace(moved, phase="failed", failure=self.failure))
        else:
            at = EngineAddress(
                model=model,
                host="127.0.0.1",
                port=8123,
                key="engine-secret",
                generation=self.starts,
                context=4096,
                parallel=1,
            )
            self._outcomes[model] = self.ready[model] = at
            self.publish(msgspec.structs.replace(moved, phase="ready", spent={"starting": 0.1, "loading": 0.4}))
        self.finished += 1
        del self._orders[model]
        done.set()

    async def unload(self, model: str, *, epoch: int | None = None) -> None:
        self._admit(model, epoch)
        self.ready.pop(model, None)

    async def locate(self, model: str) -> EngineAddress | None:
        self._admit(model, None)
        return self.ready.get(model)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[SupervisorEvent]]:
        sender, receiver = anyio.create_memory_object_stream[SupervisorEvent](100)
        self._listeners.append(sender)
        sender.send_nowait(Snapshot(host=self.host()))
        self._tell()
        try:
            yield receiver
        finally:
            self._listeners.remove(sender)
            self._tell()
            sender.close()
            receiver.close()

    async def listened_to_by(self, number: int) -> None:
        """Wait until that many subscriptions are open."""
        while len(self._listeners) != number:
            await self._listeners_changed.wait()

    def _tell(self) -> None:
        self._listeners_changed.set()
        self._listeners_changed = anyio.Event()

    def publish(self, event: SupervisorEvent) -> None:
        for listener in self._listeners:
            with contextlib.suppress(anyio.BrokenResourceError):
                listener.send_nowait(event)

    def _admit(self, model: str, epoch: int | None) -> None:
        if model not in {profile.name for profile in self.profiles}:
            raise UnknownProfile(f'model "{model}" is unknown')
        if epoch is not None:
            if epoch < self.epoch:
                raise StaleEpoch(f"epoch {epoch} is over")
            self.epoch = epoch


@pytest.fixture
async def pretended() -> AsyncIterator[PretendedHost]:
    async with PretendedHost().running() as host:
        yield host
