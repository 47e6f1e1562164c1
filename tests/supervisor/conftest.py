"""Fixtures of the supervisor's tests: a real HTTP server, a fake supervisor, and scripted engines."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec
import psutil
import pytest
import uvicorn
from starlette.applications import Starlette

from hostler.profiles.schema import Profile
from hostler.supervisor.api import create_app
from hostler.supervisor.contract import (
    EngineAddress,
    Failure,
    HostStatus,
    ModelStatus,
    ProfileInfo,
    Snapshot,
    SupervisorError,
    SupervisorEvent,
    SwitchMoved,
    UnknownProfile,
)
from hostler.supervisor.lease_server import LeaseServer
from hostler.supervisor.manager import EngineManager

Serve = Callable[[Starlette], AbstractAsyncContextManager[str]]


@pytest.fixture
def serve() -> Serve:
    """`async with serve(app) as url:` serves an app on a free port of loopback."""
    return _serve


@asynccontextmanager
async def _serve(app: Starlette) -> AsyncIterator[str]:
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=5, server_header=False, ws="none"
    )
    server = uvicorn.Server(config)
    started = anyio.Event()
    startup = server.startup

    async def notify(sockets: list[object] | None = None) -> None:
        await startup(sockets=sockets)  # type: ignore[arg-type]  # uvicorn's own argument, passed on
        started.set()

    server.startup = notify  # type: ignore[method-assign]  # uvicorn has no hook for "listening"
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


class FakeSupervisor:
    """A `Supervisor` without engines: a switch takes until `gate` is set, and joins as the contract requires."""

    def __init__(self) -> None:
        self.profiles = (
            ProfileInfo(name="alpha", aliases=("first",), context=4096, load_s=1.5),
            ProfileInfo(name="beta"),
        )
        self.ready: dict[str, EngineAddress] = {}
        self.gate = anyio.Event()
        self.gate.set()
        self.failure: Failure | None = None
        self.active: int | None = 0
        self.starts = 0
        self.finished = 0
        self.evicted: list[str] = []
        self.answers: list[tuple[str, int, int, int]] = []
        self._listeners_changed = anyio.Event()
        self._listeners: list[anyio.abc.ObjectSendStream[SupervisorEvent]] = []
        self._orders: dict[str, anyio.Event] = {}
        self._outcomes: dict[str, EngineAddress | SupervisorError] = {}
        self._tasks: anyio.abc.TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeSupervisor]:
        async with anyio.create_task_group() as self._tasks:
            yield self
            self._tasks.cancel_scope.cancel()

    async def status(self) -> HostStatus:
        return self.host()

    def snapshot(self) -> Snapshot:
        return Snapshot(host=self.host())

    def host(self) -> HostStatus:
        models = tuple(
            ModelStatus(model=name, state="ready", since=1.0, generation=at.generation)
            for name, at in self.ready.items()
        )
        return HostStatus(profiles=self.profiles, models=models)

    async def switch(self, model: str, *, evict: Sequence[str] = ()) -> EngineAddress:
        self._admit(model)
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
            self.publish(msgspec.structs.replace(moved, phase="ready", phase_seconds={"starting": 0.1, "loading": 0.4}))
        self.finished += 1
        del self._orders[model]
        done.set()

    async def unload(self, model: str) -> None:
        self._admit(model)
        self.ready.pop(model, None)

    async def locate(self, model: str) -> EngineAddress | None:
        self._admit(model)
        return self.ready.get(model)

    async def active_requests(self, model: str, generation: int) -> int | None:
        self._admit(model)
        return self.active

    async def report_first_response(self, model: str, *, generation: int, cached: int, prompt: int) -> None:
        self._admit(model)
        self.answers.append((model, generation, cached, prompt))

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

    def _admit(self, model: str) -> None:
        if model not in {profile.name for profile in self.profiles}:
            raise UnknownProfile(f'model "{model}" is unknown')


@asynccontextmanager
async def lease_server(supervisor: Any, **options: Any) -> AsyncIterator[LeaseServer]:
    """The leases of a supervisor's models, with everything known about them."""
    leases = LeaseServer(supervisor, **options)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leases.run)
        await leases.host.synced.wait()
        yield leases
        tasks.cancel_scope.cancel()


ServeAPI = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
def serve_api() -> ServeAPI:
    """`async with serve_api(supervisor, token="t") as url:` serves a supervisor's API, with its scheduler."""

    @asynccontextmanager
    async def run(supervisor: Any, *, token: str | None = None, **options: Any) -> AsyncIterator[str]:
        async with (
            lease_server(supervisor) as leases,
            _serve(create_app(supervisor, leases, token=token, **options)) as url,
        ):
            yield url

    return run


@pytest.fixture
def leasing() -> Callable[..., AbstractAsyncContextManager[LeaseServer]]:
    """`async with leasing(supervisor) as leases:` runs the scheduler of a supervisor."""
    return lease_server


@pytest.fixture
async def fake_supervisor() -> AsyncIterator[FakeSupervisor]:
    async with FakeSupervisor().running() as host:
        yield host


FAKE_ENGINE = Path(__file__).parents[1] / "fakes" / "fake_engine.py"


@pytest.fixture
def fake_engine() -> str:
    """The command line of the scripted engine."""
    return f"{sys.executable} -I -S {FAKE_ENGINE}"


class Journal:
    """The events that scripted engines have recorded in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def events(self, kind: str | None = None, model: str | None = None) -> list[dict[str, Any]]:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        events = [json.loads(line) for line in lines]
        return [
            event
            for event in events
            if kind in (None, event["event"]) and model in (None, Path(str(event["model"])).name)
        ]

    async def until(self, kind: str, count: int = 1) -> None:
        """Wait until `count` events of `kind` are recorded."""
        with anyio.fail_after(20):
            while len(self.events(kind)) < count:  # noqa: ASYNC110 - what is waited for is a file
                await anyio.sleep(0.005)

    def kinds(self) -> list[tuple[str, str]]:
        """Starts and stops in order, as `(event, model)`."""
        return [(event["event"], event["model"]) for event in self.events() if event["event"] in ("start", "stop")]

    def pids(self) -> list[int]:
        """Every process that was started, grandchildren included."""
        return [
            event.get("grandchild", event["pid"])
            for event in self.events()
            if event["event"] in ("start", "grandchild")
        ]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """The events of scripted engines; afterwards none of them may be alive."""
    journal = Journal(tmp_path / "engines.jsonl")
    yield journal
    assert not [pid for pid in journal.pids() if is_running(pid)]


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def scripted(tmp_path: Path, fake_engine: str, journal: Journal) -> Callable[..., Profile]:
    """`scripted("name", ready_after=0.1)` is a profile whose engine behaves like that."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")

    def make(name: str, *, profile: dict[str, Any] | None = None, **script: Any) -> Profile:
        env = {"FAKE_ENGINE": json.dumps(script), "FAKE_LOG": str(journal.file)}
        return Profile(name=name, model=str(file), engine=fake_engine, env=env, **(profile or {}))

    return make


@asynccontextmanager
async def _running(manager: EngineManager) -> AsyncIterator[EngineManager]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.run)
        await manager.started()
        yield manager
        tasks.cancel_scope.cancel()


@pytest.fixture
def running() -> Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]:
    """`async with running(manager):` runs a manager and ends all of its engines."""
    return _running
