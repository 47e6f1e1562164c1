"""Several gateways before one supervisor, all of them processes of their own, and what the engines' log proves of them."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from fakes.ports import free_port
from fakes.tcp_proxy import TcpProxy
from system.hostler_process import HostlerProcess, run_hostler
from system.running_gateway import FAKE_ENGINE, EngineLog, data_events, write_keys

from hostler.gateway.context import KeyRules

TOKEN = "between-machines"


class Program:
    """A `hostler` process that can be killed, suspended and started again."""

    def __init__(self, command: str, file: Path, environ: dict[str, str]) -> None:
        self._arguments = (command, "--config", str(file))
        self._log = file.with_suffix(".log")
        self._environ = environ
        self._stack = ExitStack()
        self.running: HostlerProcess

    @property
    def log(self) -> str:
        """The log since the last start."""
        return self._log.read_text()

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        running = run_hostler(*self._arguments, errors=self._log, environ=self._environ)
        self.running = await anyio.to_thread.run_sync(self._stack.enter_context, running)

    async def stop(self) -> None:
        """Stop it gracefully, also when it is suspended."""
        self.signal(signal.SIGCONT)
        await anyio.to_thread.run_sync(self._stack.close)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.running.process.poll() is None:
            self.running.process.send_signal(number)

    async def kill(self) -> None:
        """Kill it, as a power cut would."""
        self.signal(signal.SIGKILL)
        await anyio.to_thread.run_sync(self._stack.close)


class GatewayProgram(Program):
    """A gateway, with clients that have keys."""

    http: httpx.AsyncClient

    def __init__(self, file: Path, environ: dict[str, str], keys: dict[str, str]) -> None:
        super().__init__("gateway", file, environ)
        self._file = file
        self._keys = keys

    @asynccontextmanager
    async def started(self) -> AsyncIterator[GatewayProgram]:
        """Run it until the context ends."""
        await self.start()
        limits = httpx.Limits(max_connections=200)
        try:
            async with httpx.AsyncClient(
                base_url=self.running.address, timeout=60, limits=limits, trust_env=False
            ) as self.http:
                yield self
        finally:
            with anyio.CancelScope(shield=True):
                await self.stop()

    async def restart_with(self, **sections: dict[str, Any]) -> None:
        """Stop it, add to sections of its file, and start it again."""
        await self.stop()
        document = json.loads(self._file.read_text())
        for name, section in sections.items():
            document[name] = {**document[name], **section}
        self._file.write_text(json.dumps(document))
        await self.start()
        self.http.base_url = self.running.address

    async def chat(self, model: str, client: str = "anna", **more: Any) -> httpx.Response:
        """Request an answer and read it to its end."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
        return await self.http.post("/v1/chat/completions", json=body, headers=self.auth(client))

    async def statuses(self, method: str, path: str, **request: Any) -> set[int]:
        """The statuses of a dozen equal requests, each on a connection of its own, and so by all workers."""
        found = set()
        for _ in range(12):
            async with httpx.AsyncClient(base_url=self.running.address, timeout=60, trust_env=False) as http:
                found.add((await http.request(method, path, **request)).status_code)
        return found

    async def until_known(self, model: str) -> None:
        """Wait until each worker knows the model."""
        chat = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
        with anyio.fail_after(90):
            while 404 in await self.statuses("POST", "/v1/chat/completions", json=chat, headers=self.auth()):  # noqa: ASYNC110
                await anyio.sleep(0.05)

    def auth(self, client: str = "anna") -> dict[str, str]:
        """The headers of a client."""
        return {"Authorization": f"Bearer {self._keys[client]}"}

    async def host(self) -> dict[str, Any]:
        """The status of its one host."""
        answer = await self.http.get("/admin/status", headers=self.auth())
        host: dict[str, Any] = answer.json()["hosts"][0]
        return host

    async def until(self, **expected: Any) -> None:
        """Wait until the host's status has these values."""
        host: dict[str, Any] = {}
        with anyio.move_on_after(20):
            while not all(host.get(name) == value for name, value in expected.items()):
                host = await self.host()
        assert {name: host.get(name) for name in expected} == expected


class Installation(EngineLog):
    """A supervisor with scripted engines, and gateways before it."""

    def __init__(self, folder: Path, supervisor: Program, gateways: list[GatewayProgram], port: int) -> None:
        super().__init__(folder / "engines.log")
        self.supervisor = supervisor
        self.gateways = gateways
        self.port = port

    def most_running(self, model: str, words: int = 5) -> int:
        """The largest number of streams, of so many words, that engines of a model worked on at a time."""
        running = most = 0
        for event in self.events():
            if event["model"] != model:
                continue
            if event["event"] == "request" and event["method"] == "POST":
                running += 1
                most = max(most, running)
            elif event["event"] == "finished" or (event["event"] == "gone" and event["chunk"] <= words):
                running -= 1
            elif event["event"] == "start":
                running = 0
        return most

    def switches_overlap(self) -> bool:
        """Whether two engines were ever alive at a time."""
        alive: set[int] = set()
        for event in self.events():
            if event["event"] == "start":
                alive.add(event["pid"])
            elif event["event"] == "stop":
                alive.discard(event["pid"])
            if len(alive) > 1:
                return True
        return False


@asynccontextmanager
async def installation(
    folder: Path,
    profiles: dict[str, dict[str, Any]],
    *,
    gateways: int = 2,
    proxy: TcpProxy | None = None,
    supervisor: dict[str, Any] | None = None,
    host: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    backends: dict[str, Any] | None = None,
    cluster: dict[str, Any] | None = None,
    rules: Mapping[str, KeyRules] | None = None,
) -> AsyncIterator[Installation]:
    """Run everything until the context ends.

    Through `proxy` the first gateway reaches the supervisor, `host` is the supervisor's `gateway:` section, `settings` that
    of the gateways, `backends` are their further hops, `cluster` is what they share, `rules` are those of
    the clients' keys.
    """
    port = free_port()
    if proxy is not None:
        proxy.point_to(port)
    entries = _engines_in(folder, profiles)
    environ = {"HOSTLER_CACHE": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}
    file, keys = write_keys(folder, rules, anna=0, bob=0, carol=0)
    section = {
        "listen": f"127.0.0.1:{port}", "token": TOKEN, "engine": f"{sys.executable} -I -S {FAKE_ENGINE}",
        "stop_grace_s": 1.0, **(supervisor or {}),
    }  # fmt: skip
    written = folder / "supervisor.yaml"
    written.write_text(json.dumps({"supervisor": section, "gateway": host or {}, "profiles": entries}))
    program = Program("supervisor", written, environ)
    programs = []
    for number in range(gateways):
        url = f"http://127.0.0.1:{proxy.port if proxy is not None and number == 0 else port}"
        document = {
            "gateway": {"listen": ["127.0.0.1:0"], "api_keys_file": file, **(settings or {})},
            "backends": {"pc": {"kind": "supervisor", "url": url, "token": TOKEN}, **(backends or {})},
        }
        if cluster is not None:
            document["cluster"] = {**cluster, "member": f"gateway{number}"}
        path = folder / f"gateway{number}.yaml"
        path.write_text(json.dumps(document))
        programs.append(GatewayProgram(path, {**environ, "XDG_STATE_HOME": str(folder / f"state{number}")}, keys))
    await program.start()
    try:
        async with AsyncExitStack() as stack:
            for gateway in programs:
                await stack.enter_async_context(gateway.started())
            for gateway in programs:
                await gateway.until(reachable=True)
            yield Installation(folder, program, programs, port)
    finally:
        with anyio.CancelScope(shield=True):
            await program.stop()


def _engines_in(folder: Path, profiles: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The profiles of scripted engines that write their log in this folder."""
    folder.mkdir(exist_ok=True)
    model = folder / "model.gguf"
    model.write_bytes(b"not read by the scripted engine")
    entries = {}
    for name, profile in profiles.items():
        fields = dict(profile)
        script = {"log": str(folder / "engines.log"), **fields.pop("script", {})}
        entries[name] = {"model": str(model), **fields, "env": {"FAKE_ENGINE": json.dumps(script)}}
    return entries


def words(answer: httpx.Response) -> str:
    """The text of a streamed answer."""
    parts = [
        choice["delta"].get("content") or ""
        for event in data_events(answer.text)
        for choice in event.get("choices", ())
    ]
    return "".join(parts)


def counts(answers: Sequence[httpx.Response]) -> Counter[int]:
    """How many answers have each status."""
    return Counter(answer.status_code for answer in answers)
