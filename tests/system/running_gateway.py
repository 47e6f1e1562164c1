"""A gateway and its supervisors in the test's event loop, on real sockets, with scripted engines as child processes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from anyio.abc import TaskGroup
from fakes.certificates import Pair
from fakes.ports import free_port

from hostler.gateway.app import Gateway
from hostler.gateway.auth.keys import add
from hostler.gateway.config import Configuration, read
from hostler.gateway.context import KeyRules
from hostler.gateway.server.server import Server, bind
from hostler.gateway.worker_service import WorkerService
from hostler.supervisor.api import create_app
from hostler.supervisor.lease_server import LeaseServer
from hostler.supervisor.manager import EngineManager, create_manager
from hostler.supervisor.tls import ServerCertificate

FAKE_ENGINE = Path(__file__).parent.parent / "fakes" / "fake_engine.py"

Profiles = dict[str, dict[str, Any]]
StartGateway = Callable[..., AbstractAsyncContextManager["RunningGateway"]]

_TOKEN = "between-hosts"

#: How many worker processes gateways have, where a test does not say.
WORKERS = int(os.environ.get("HOSTLER_TEST_WORKERS", "1"))


class EngineLog:
    """The log that scripted engines write, as events."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def events(self, kind: str | None = None, model: str | None = None) -> list[dict[str, Any]]:
        """The logged events, in order."""
        text = self.log.read_text() if self.log.exists() else ""
        events = [json.loads(line) for line in text.splitlines()]
        return [event for event in events if kind in (None, event["event"]) and model in (None, event["model"])]

    def starts(self, model: str | None = None) -> list[str]:
        """The models whose engines were started, in order."""
        return [event["model"] for event in self.events("start", model)]

    def requests(self, model: str | None = None) -> list[dict[str, Any]]:
        """The POST requests that engines received."""
        return [event for event in self.events("request", model) if event["method"] == "POST"]

    async def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        """Wait for something outside this process to become true."""
        with anyio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - what is waited for is a file that another process writes
                await anyio.sleep(0.005)


class RunningGateway(EngineLog):
    """A running gateway, with its own supervisor if it has profiles."""

    def __init__(self, url: str, log: Path, manager: EngineManager, app: Gateway, http: httpx.AsyncClient) -> None:
        super().__init__(log)
        self.url = url
        self.manager = manager
        self.app = app
        self.http = http

    async def chat(self, model: str | None, *, key: str | None = None, **more: Any) -> httpx.Response:
        """Request a whole answer."""
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], **more}
        if model is not None:
            body["model"] = model
        return await self.http.post("/v1/chat/completions", json=body, headers=_bearer(key))

    async def keep_asking(self, model: str, key: str | None = None) -> None:
        """Request one answer after the other until cancelled."""
        while True:
            await self.chat(model, key=key)

    def stream(self, model: str, *, key: str | None = None, **more: Any) -> AbstractAsyncContextManager[httpx.Response]:
        """Request a streamed answer."""
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}], **more}
        return self.http.stream("POST", "/v1/chat/completions", json=body, headers=_bearer(key))

    async def action(self, name: str, **body: Any) -> httpx.Response:
        """Call an admin action."""
        return await self.http.post(f"/admin/{name}", json=body)

    async def status(self) -> dict[str, Any]:
        """The body of `GET /admin/status`."""
        return (await self.http.get("/admin/status")).json()  # type: ignore[no-any-return]

    async def counts(self) -> tuple[int, int]:
        """The numbers of requests being served and waiting on the first host."""
        host = (await self.status())["hosts"][0]
        return int(host["serving"]), int(host["waiting"])

    async def until_counts(self, serving: int, waiting: int) -> None:
        """Wait until these many requests are being served and waiting."""
        counts = (-1, -1)
        with anyio.move_on_after(20):
            while (counts := await self.counts()) != (serving, waiting):  # noqa: ASYNC110 - asked as an operator would
                await anyio.sleep(0.002)
        assert counts == (serving, waiting)

    async def until_status(self, condition: Callable[[dict[str, dict[str, Any]]], bool]) -> None:
        """Wait until the status of the hosts, by backend name, fulfils the condition."""
        with anyio.fail_after(20):
            while not condition({host["backend"]: host for host in (await self.status())["hosts"]}):  # noqa: ASYNC110
                await anyio.sleep(0.005)


class RemoteSupervisor(EngineLog):
    """A supervisor behind its HTTP interface, as on another machine."""

    def __init__(
        self,
        manager: EngineManager,
        leases: LeaseServer,
        port: int,
        log: Path,
        tasks: TaskGroup,
        pair: Pair | None = None,
        socket: str | None = None,
    ) -> None:
        super().__init__(log)
        self.socket = socket
        self.pair = pair
        self.manager = manager
        self.leases = leases
        self.port = port
        self._tasks = tasks

    @property
    def backend(self) -> dict[str, str]:
        """Its entry in a gateway's configuration."""
        entry = {"kind": "supervisor", "url": f"http://127.0.0.1:{self.port}", "token": _TOKEN}
        if self.socket is not None:
            return {**entry, "url": f"unix:{self.socket}"}
        if self.pair is None:
            return entry
        return {**entry, "url": f"https://127.0.0.1:{self.port}", "certificate": self.pair.cert}

    async def scrape(self) -> httpx.Response:
        """Fetch its metrics as Prometheus does."""
        async with httpx.AsyncClient(trust_env=False) as http:
            return await http.get(f"http://127.0.0.1:{self.port}/metrics", headers=_bearer(_TOKEN))

    async def listen(self) -> None:
        """Start the HTTP interface."""
        self._stop, self._stopped, listening = anyio.Event(), anyio.Event(), anyio.Event()
        self._tasks.start_soon(self._serve, self._stop, self._stopped, listening)
        await listening.wait()

    async def _metrics(self) -> bytes:
        return await self.manager.metrics.render(queue=(self.leases.host.waiting, self.leases.host.serving))

    async def stop_listening(self) -> None:
        """Stop the HTTP interface and close its connections; engines keep running."""
        self._stop.set()
        await self._stopped.wait()

    async def _serve(self, stop: anyio.Event, stopped: anyio.Event, listening: anyio.Event) -> None:
        app: Any = create_app(self.manager, self.leases, token=_TOKEN, logs=self.manager.logs, metrics=self._metrics)
        sockets = bind([("127.0.0.1", self.port) if self.socket is None else (self.socket, 0)], "supervisor.listen")
        self.port = self.port if self.socket else sockets[0].getsockname()[1]
        certificate = None if self.pair is None else ServerCertificate(*self.pair)
        server = Server(app, drain_s=1.0, started_callback=listening.set, certificate=certificate)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.serve, sockets)
                await stop.wait()
                app.state.stopping.set()
                server.stop()
                server.stop()
        finally:
            for each in sockets:
                each.close()
            stopped.set()


def gateway_starter(tmp_path: Path) -> StartGateway:
    """Make `start_gateway`: `async with start_gateway({"a": {...}, "b": {...}}) as gateway`, with profiles by name.

    A profile's `script` is passed to its scripted engine; its other fields and the sections go into the configuration
    file. Without profiles the gateway has no supervisor, only its `backends`; those that are supervisors must be running.
    """

    @asynccontextmanager
    async def start(profiles: Profiles, **sections: dict[str, Any]) -> AsyncIterator[RunningGateway]:
        configuration, manager = _host_in(tmp_path, profiles, sections)
        count, local = configuration.settings.gateway.workers, manager if profiles else None
        app = Gateway(
            configuration.settings,
            local=local,
            library=configuration.library,
            presets=configuration.presets,
            workers=WorkerService(count, local=local) if count > 1 else None,
        )
        sockets = bind([("127.0.0.1", 0)], "gateway.listen", several=count > 1)
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        started, stopped = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.run)

            async def serve() -> None:
                await app.run(sockets, started=started.set)
                stopped.set()

            tasks.start_soon(serve)
            await started.wait()
            await until_hosts_reachable(app)
            limits = httpx.Limits(max_connections=200)
            async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits, trust_env=False) as http:
                yield RunningGateway(url, tmp_path / "engines.log", manager, app, http)
            app.stop()
            app.stop()
            await stopped.wait()
            tasks.cancel_scope.cancel()

    return start


@asynccontextmanager
async def remote_supervisor(
    folder: Path,
    profiles: Profiles,
    *,
    port: int = 0,
    pair: Pair | None = None,
    socket: str | None = None,
    **sections: Any,
) -> AsyncIterator[RemoteSupervisor]:
    """Run a supervisor behind its HTTP interface, as on another machine, with its engines, until the context ends. With a
    `pair` it has TLS, with a `socket` it listens there."""
    configuration, manager = _host_in(folder, profiles, sections)
    leases = LeaseServer(manager, limits=configuration.host_limits)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.run)
        tasks.start_soon(leases.run)
        # Reserved: while the interface is stopped, the system could give an ephemeral port to another socket.
        host = RemoteSupervisor(manager, leases, port or free_port(), folder / "engines.log", tasks, pair, socket)
        await manager.started()
        await host.listen()
        try:
            yield host
        finally:
            with anyio.CancelScope(shield=True):
                await host.stop_listening()
            tasks.cancel_scope.cancel()


async def until_hosts_reachable(app: Gateway) -> None:
    """Wait until the gateway knows the models of all of its hosts. It serves after a second without them."""
    with anyio.fail_after(20):
        while not all(host.reachable for host in app.status().hosts):  # noqa: ASYNC110 - the status has no event
            await anyio.sleep(0.005)


def write_keys(
    folder: Path, rules: Mapping[str, KeyRules] | None = None, **priorities: int
) -> tuple[str, dict[str, str]]:
    """Write a key file with a key of all scopes for each name; its path and the keys by name."""
    path = folder / "keys"
    scopes = ("infer", "read", "operate")
    return str(path), {
        name: add(path, name, scopes, priority=level, rules=(rules or {}).get(name))
        for name, level in priorities.items()
    }


def _host_in(folder: Path, profiles: Profiles, sections: dict[str, Any]) -> tuple[Configuration, EngineManager]:
    folder.mkdir(exist_ok=True)
    model = folder / "model.gguf"
    model.write_bytes(b"not read by the scripted engine")
    entries = {}
    for name, profile in profiles.items():
        fields = dict(profile)
        script = {"log": str(folder / "engines.log"), **fields.pop("script", {})}
        env = {"FAKE_ENGINE": json.dumps(script), **fields.pop("env", {})}
        entries[name] = {"model": str(model), **fields, "env": env}
        if entries[name]["model"] is None:
            del entries[name]["model"]
    document = {
        "gateway": {
            "listen": ["127.0.0.1:0"],
            "api_keys_file": None,
            **({"workers": WORKERS} if WORKERS > 1 else {}),
            **sections.get("gateway", {}),
        },
        "supervisor": {
            "engine": f"{sys.executable} -I -S {FAKE_ENGINE}",
            "stop_grace_s": 1.0,
            "backoff_s": 0.05,
            **sections.get("supervisor", {}),
        },
        "backends": sections.get("backends", {}),
        "breaker": sections.get("breaker", {}),
        "engines": sections.get("engines", {}),
        "macros": sections.get("macros", {}),
        "profiles": entries,
    }
    path = folder / "hostler.yaml"
    path.write_text(json.dumps(document))
    configuration = read(path)
    environ = {"HOSTLER_CACHE": str(folder / "cache")}
    return configuration, create_manager(configuration.profiles, configuration.settings.supervisor, environ=environ)


def _bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


async def first_token(answer: httpx.Response) -> AsyncIterator[str]:
    """Wait for the first token, skipping progress; the lines that follow it."""
    # Kept in the response: a generator that is dropped would close the response with it.
    lines: AsyncIterator[str] = answer.extensions.setdefault("lines", answer.aiter_lines())
    async for line in lines:
        if '"word0' in line:
            break
    return lines


def data_events(text: str) -> list[Any]:
    """The JSON events of an event stream, without `[DONE]` and comments."""
    events = []
    for block in text.split("\n\n"):
        lines = [line[5:].strip() for line in block.split("\n") if line.startswith("data:")]
        if lines and lines != ["[DONE]"]:
            events.append(json.loads("\n".join(lines)))
    return events


def is_complete(text: str) -> bool:
    """Whether an event stream is a complete answer: with a finish reason and `[DONE]`, without an error."""
    events = data_events(text)
    finish_reasons = [choice.get("finish_reason") for event in events for choice in event.get("choices", ())]
    return "data: [DONE]" in text and "stop" in finish_reasons and not any("error" in event for event in events)
