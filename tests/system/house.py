"""A house to test in: gateway and supervisor in this event loop, on real sockets, with engines as real children."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx

from hostler.gateway.app import Gateway
from hostler.gateway.server import bind
from hostler.gateway.settings import read
from hostler.supervisor.fleet import Fleet
from hostler.supervisor.host import open_host

FAKE_ENGINE = Path(__file__).parent.parent / "fakes" / "fake_engine.py"

OpenHouse = Callable[..., AbstractAsyncContextManager["House"]]


class House:
    """A running gateway with a supervisor of its own."""

    def __init__(self, url: str, log: Path, fleet: Fleet, gateway: Gateway, http: httpx.AsyncClient) -> None:
        self.url = url
        self.fleet = fleet
        self.gateway = gateway
        self.http = http
        self._log = log

    def events(self, kind: str | None = None, model: str | None = None) -> list[dict[str, Any]]:
        """What the scripted engines noted, in order."""
        text = self._log.read_text() if self._log.exists() else ""
        notes = [json.loads(line) for line in text.splitlines()]
        return [note for note in notes if kind in (None, note["event"]) and model in (None, note["model"])]

    def starts(self, model: str | None = None) -> list[str]:
        """The models whose engines were started, in order."""
        return [note["model"] for note in self.events("start", model)]

    async def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        """Wait for something outside this process to become true."""
        with anyio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - what is waited for is a file that another process writes
                await anyio.sleep(0.005)

    async def chat(self, model: str | None, **more: Any) -> httpx.Response:
        """A whole answer."""
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], **more}
        if model is not None:
            body["model"] = model
        return await self.http.post("/v1/chat/completions", json=body)

    def stream(self, model: str, **more: Any) -> AbstractAsyncContextManager[httpx.Response]:
        """A streamed answer."""
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}], **more}
        return self.http.stream("POST", "/v1/chat/completions", json=body)

    async def status(self) -> dict[str, Any]:
        """The gateway's own view."""
        return (await self.http.get("/admin/status")).json()  # type: ignore[no-any-return]


def house_in(tmp_path: Path) -> OpenHouse:
    """`async with open_house({"a": {...}, "b": {...}}) as house`: profiles by name, each with an optional script.

    A profile's `script` is what the fake engine reads; everything else goes into the configuration file.
    """

    @asynccontextmanager
    async def opened(
        profiles: dict[str, dict[str, Any]],
        *,
        gateway: dict[str, Any] | None = None,
        supervisor: dict[str, Any] | None = None,
    ) -> AsyncIterator[House]:
        model, log = tmp_path / "model.gguf", tmp_path / "engines.log"
        model.write_bytes(b"not read by the scripted engine")
        entries = {}
        for name, profile in profiles.items():
            plain = dict(profile)
            script = {"log": str(log), **plain.pop("script", {})}
            entries[name] = {"model": str(model), **plain, "env": {"FAKE_ENGINE": json.dumps(script)}}
        document = {
            "gateway": {"listen": ["127.0.0.1:0"], "api_keys_file": None, **(gateway or {})},
            "supervisor": {
                "engine": f"{sys.executable} -I -S {FAKE_ENGINE}",
                "stop_grace_s": 1.0,
                "backoff_s": 0.05,
                **(supervisor or {}),
            },
            "profiles": entries,
        }
        path = tmp_path / "hostler.yaml"
        path.write_text(json.dumps(document))
        configuration = read(path)
        environ = {"HOSTLER_CACHE": str(tmp_path / "cache")}
        fleet = open_host(configuration.profiles, configuration.settings.supervisor, environ=environ)
        together = Gateway(configuration.settings, local=fleet)
        sockets = bind([("127.0.0.1", 0)], "gateway.listen")
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        started, ended = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fleet.run)

            async def serve() -> None:
                await together.run(sockets, started=started.set)
                ended.set()

            tasks.start_soon(serve)
            await started.wait()
            limits = httpx.Limits(max_connections=200)
            async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits, trust_env=False) as http:
                yield House(url, log, fleet, together, http)
            together.stop()
            together.stop()
            await ended.wait()
            tasks.cancel_scope.cancel()

    return opened


def data_events(text: str) -> list[Any]:
    """The JSON events of an event stream, without `[DONE]` and comments."""
    events = []
    for block in text.split("\n\n"):
        lines = [line[5:].strip() for line in block.split("\n") if line.startswith("data:")]
        if lines and lines != ["[DONE]"]:
            events.append(json.loads("\n".join(lines)))
    return events


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
