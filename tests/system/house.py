"""A house to test in: gateway and supervisors in this event loop, on real sockets, with engines as real children."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from anyio.abc import TaskGroup
from fakes.ports import free_port

from hostler.gateway.app import Gateway
from hostler.gateway.auth.keys import add
from hostler.gateway.config import Configuration, read
from hostler.gateway.server.server import Server, bind
from hostler.supervisor.api import create_app
from hostler.supervisor.manager import EngineManager, create_manager

FAKE_ENGINE = Path(__file__).parent.parent / "fakes" / "fake_engine.py"

Profiles = dict[str, dict[str, Any]]
OpenHouse = Callable[..., AbstractAsyncContextManager["House"]]

_TOKEN = "between-hosts"


class Engines:
    """What scripted engines noted."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def events(self, kind: str | None = None, model: str | None = None) -> list[dict[str, Any]]:
        """The notes, in order."""
        text = self._log.read_text() if self._log.exists() else ""
        notes = [json.loads(line) for line in text.splitlines()]
        return [note for note in notes if kind in (None, note["event"]) and model in (None, note["model"])]

    def starts(self, model: str | None = None) -> list[str]:
        """The models whose engines were started, in order."""
        return [note["model"] for note in self.events("start", model)]

    def asked(self, model: str | None = None) -> list[dict[str, Any]]:
        """The questions that reached them."""
        return [note for note in self.events("request", model) if note["method"] == "POST"]

    async def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        """Wait for something outside this process to become true."""
        with anyio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - what is waited for is a file that another process writes
                await anyio.sleep(0.005)


class House(Engines):
    """A running gateway, with a supervisor of its own if it has profiles."""

    def __init__(self, url: str, log: Path, manager: EngineManager, gateway: Gateway, http: httpx.AsyncClient) -> None:
        super().__init__(log)
        self.url = url
        self.manager = manager
        self.gateway = gateway
        self.http = http

    async def chat(self, model: str | None, *, key: str | None = None, **more: Any) -> httpx.Response:
        """A whole answer."""
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], **more}
        if model is not None:
            body["model"] = model
        return await self.http.post("/v1/chat/completions", json=body, headers=_bearer(key))

    def stream(self, model: str, *, key: str | None = None, **more: Any) -> AbstractAsyncContextManager[httpx.Response]:
        """A streamed answer."""
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}], **more}
        return self.http.stream("POST", "/v1/chat/completions", json=body, headers=_bearer(key))

    async def order(self, what: str, **body: Any) -> httpx.Response:
        """An operator's call."""
        return await self.http.post(f"/admin/{what}", json=body)

    async def status(self) -> dict[str, Any]:
        """The gateway's own view."""
        return (await self.http.get("/admin/status")).json()  # type: ignore[no-any-return]

    async def counts(self) -> tuple[int, int]:
        """How many are served and how many wait, on its first host."""
        host = (await self.status())["hosts"][0]
        return int(host["serving"]), int(host["waiting"])

    async def until_counts(self, serving: int, waiting: int) -> None:
        """Wait until so many are served and so many wait."""
        counts = (-1, -1)
        with anyio.move_on_after(20):
            while (counts := await self.counts()) != (serving, waiting):  # noqa: ASYNC110 - asked as an operator would
                await anyio.sleep(0.002)
        assert counts == (serving, waiting)

    async def until_status(self, condition: Callable[[dict[str, dict[str, Any]]], bool]) -> None:
        """Wait until the gateway says so of its hosts."""
        with anyio.fail_after(20):
            while not condition({host["backend"]: host for host in (await self.status())["hosts"]}):  # noqa: ASYNC110
                await anyio.sleep(0.005)


class Host(Engines):
    """A running supervisor of another machine."""

    def __init__(self, manager: EngineManager, port: int, log: Path, tasks: TaskGroup) -> None:
        super().__init__(log)
        self.manager = manager
        self.port = port
        self._tasks = tasks

    @property
    def backend(self) -> dict[str, str]:
        """How a gateway's configuration names it."""
        return {"kind": "supervisor", "url": f"http://127.0.0.1:{self.port}", "token": _TOKEN}

    async def scrape(self) -> httpx.Response:
        """Its metrics, as Prometheus asks for them."""
        async with httpx.AsyncClient(trust_env=False) as http:
            return await http.get(f"http://127.0.0.1:{self.port}/metrics", headers=_bearer(_TOKEN))

    async def speak(self) -> None:
        """Its HTTP interface listens."""
        self._stop, self._stopped, listens = anyio.Event(), anyio.Event(), anyio.Event()
        self._tasks.start_soon(self._serve, self._stop, self._stopped, listens)
        await listens.wait()

    async def fall_silent(self) -> None:
        """Its HTTP interface ends, and every connection with it; its engines run on."""
        self._stop.set()
        await self._stopped.wait()

    async def _serve(self, stop: anyio.Event, stopped: anyio.Event, listens: anyio.Event) -> None:
        app: Any = create_app(self.manager, token=_TOKEN, logs=self.manager.logs, metrics=self.manager.metrics.render)
        sockets = bind([("127.0.0.1", self.port)], "supervisor.listen")
        self.port = sockets[0].getsockname()[1]
        server = Server(app, drain_s=1.0, started_callback=listens.set)
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


def house_in(tmp_path: Path) -> OpenHouse:
    """`async with open_house({"a": {...}, "b": {...}}) as house`: profiles by name, each with an optional script.

    A profile's `script` is what the fake engine reads; everything else goes into the configuration file. Without
    profiles it is a gateway alone, whose `backends` answer.
    """

    @asynccontextmanager
    async def opened(profiles: Profiles, **sections: dict[str, Any]) -> AsyncIterator[House]:
        configuration, manager = _host_in(tmp_path, profiles, sections)
        together = Gateway(
            configuration.settings,
            local=manager if profiles else None,
            library=configuration.library,
            presets=configuration.presets,
        )
        sockets = bind([("127.0.0.1", 0)], "gateway.listen")
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        started, ended = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.run)

            async def serve() -> None:
                await together.run(sockets, started=started.set)
                ended.set()

            tasks.start_soon(serve)
            await started.wait()
            limits = httpx.Limits(max_connections=200)
            async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits, trust_env=False) as http:
                yield House(url, tmp_path / "engines.log", manager, together, http)
            together.stop()
            together.stop()
            await ended.wait()
            tasks.cancel_scope.cancel()

    return opened


@asynccontextmanager
async def another_host(folder: Path, profiles: Profiles, *, port: int = 0, **sections: Any) -> AsyncIterator[Host]:
    """Another machine: a supervisor behind its HTTP interface, on this port. It ends with the context, engines and all."""
    _, manager = _host_in(folder, profiles, sections)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.run)
        # Kept while it is silent: the system would give its own to somebody else meanwhile.
        host = Host(manager, port or free_port(), folder / "engines.log", tasks)
        await manager.started()
        await host.speak()
        try:
            yield host
        finally:
            with anyio.CancelScope(shield=True):
                await host.fall_silent()
            tasks.cancel_scope.cancel()


def keys_in(folder: Path, **priorities: int) -> tuple[str, dict[str, str]]:
    """A key file with a key of all scopes for each name, and the keys by name."""
    path = folder / "keys"
    scopes = ("infer", "read", "operate")
    return str(path), {name: add(path, name, scopes, priority=level) for name, level in priorities.items()}


def _host_in(folder: Path, profiles: Profiles, sections: dict[str, Any]) -> tuple[Configuration, EngineManager]:
    folder.mkdir(exist_ok=True)
    model = folder / "model.gguf"
    model.write_bytes(b"not read by the scripted engine")
    entries = {}
    for name, profile in profiles.items():
        plain = dict(profile)
        script = {"log": str(folder / "engines.log"), **plain.pop("script", {})}
        entries[name] = {"model": str(model), **plain, "env": {"FAKE_ENGINE": json.dumps(script)}}
    document = {
        "gateway": {"listen": ["127.0.0.1:0"], "api_keys_file": None, **sections.get("gateway", {})},
        "supervisor": {
            "engine": f"{sys.executable} -I -S {FAKE_ENGINE}",
            "stop_grace_s": 1.0,
            "backoff_s": 0.05,
            **sections.get("supervisor", {}),
        },
        "backends": sections.get("backends", {}),
        "breaker": sections.get("breaker", {}),
        "profiles": entries,
    }
    path = folder / "hostler.yaml"
    path.write_text(json.dumps(document))
    configuration = read(path)
    environ = {"HOSTLER_CACHE": str(folder / "cache")}
    return configuration, create_manager(configuration.profiles, configuration.settings.supervisor, environ=environ)


def _bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


async def first_word(answer: httpx.Response) -> AsyncIterator[str]:
    """Wait until the model speaks; the lines that follow. Before that there may be progress."""
    # Kept by the answer: if nobody had the generator, its end would be the answer's.
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


def is_whole(text: str) -> bool:
    """Whether an event stream is a complete answer: it says why the model stopped, and tells of no error."""
    events = data_events(text)
    ends = [choice.get("finish_reason") for event in events for choice in event.get("choices", ())]
    return "data: [DONE]" in text and "stop" in ends and not any("error" in event for event in events)
