"""What the cluster's storm rages in: gateways with a common store before hosts, all processes; links between them can fail."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
from chaos.judge import CHATS, Protocol, StormRequest
from chaos.world import FOLDER, MARK, TOKEN, Program, Programs, gateway_document
from fakes.gguf_files import LLAMA, TENSORS, GgufWriter
from fakes.ports import free_port
from fakes.redis_server import RedisServer
from fakes.tcp_proxy import TcpProxy, proxy_to
from system.running_gateway import write_keys

from hostler.gateway.context import KeyRules

ENGINE = f"{sys.executable} -I -S {FOLDER / 'cluster_backend.py'}"
#: The models of each host, of which it holds one at a time: each model has three hosts or two.
HOSTS: Mapping[str, tuple[str, ...]] = {
    "host1": ("a", "b"),
    "host2": ("a", "b"),
    "host3": ("a", "vectors"),
    "host4": ("b", "vectors"),
}
GATEWAYS = ("gateway1", "gateway2", "gateway3")
SLOTS = 2
#: Clients without limits, and those whose key has one: tokens in a day, requests in a minute.
FREE = tuple(f"client{number}" for number in range(1, 9))
METERED, PACED = "metered", "paced"
#: The words of an answer for a key with limits, so that all of its requests are of one size.
LIMITED_WORDS = 8
#: What such an answer uses, prompt included, in tokens.
LIMITED_TOKENS = 5 + LIMITED_WORDS


class Disturbance(msgspec.Struct, kw_only=True):
    """What was done to a host, a gateway, or the link between the two, and when."""

    names: frozenset[str]
    action: str
    began: float
    ended: float = float("inf")

    def explains(self, names: set[str], began: float, ended: float) -> bool:
        """Whether a request that involved these programs may have suffered from it."""
        return self.names <= names and self.began <= ended and began <= self.ended


class EngineLink:
    """The way of one gateway to the engines of one host. They look themselves: `file` says what is wrong with it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def cut(self) -> None:
        self._file.write_text("cut")

    def hold(self) -> None:
        self._file.write_text("hold")

    def restore(self) -> None:
        self._file.unlink(missing_ok=True)


class ClusterWorld(Programs):
    """All programs, the store, and the links of each gateway to each host, to its engines and to the store."""

    def __init__(
        self, folder: Path, links: Mapping[tuple[str, str], TcpProxy], ports: Mapping[str, int], store: RedisServer,
        rules: Mapping[str, KeyRules],
    ) -> None:  # fmt: skip
        super().__init__()
        self.folder = folder
        self.links = links
        self.engine_links = {
            (gateway, host): EngineLink(_link_file(folder, host, gateway[-1])) for gateway in GATEWAYS for host in HOSTS
        }
        self.store = store
        self.disturbances: list[Disturbance] = []
        (folder / "model.gguf").write_bytes(GgufWriter().bytes(LLAMA, TENSORS))
        environ = {MARK: self.mark, "XDG_CONFIG_HOME": str(folder / "config")}
        keys, self.keys = write_keys(folder, rules, **dict.fromkeys((*FREE, METERED, PACED), 0))
        self.hosts = [
            Program(folder, "supervisor", name, _host(folder, name, ports[name], self.log(name), models), environ)
            for name, models in HOSTS.items()
        ]
        self.gateways = [
            Program(folder, "gateway", name, _gateway(name, ports[name], keys, links), environ) for name in GATEWAYS
        ]

    @property
    def programs(self) -> list[Program]:
        return [*self.hosts, *self.gateways]

    def log(self, host: str) -> Path:
        """Where the engines of a host write."""
        return self.folder / f"{host}-engines.log"

    def url(self, gateway: Program) -> str:
        """Where it listens, also while it does not run."""
        return f"http://{gateway.document['gateway']['listen'][0]}"

    def auth(self, key: str) -> dict[str, str]:
        """The headers of a client."""
        return {"Authorization": f"Bearer {self.keys[key]}"}

    @contextmanager
    def disturbed(self, action: str, *names: str) -> Iterator[None]:
        """Note that these programs, or what connects them, are disturbed for the time of the context."""
        entry = Disturbance(names=frozenset(names), action=action, began=time.monotonic())
        self.disturbances.append(entry)
        try:
            yield
        finally:
            entry.ended = time.monotonic()

    def explained(self, names: set[str], began: float, ended: float) -> bool:
        """Whether a request between these moments may have suffered from a disturbance."""
        return any(each.explains(names, began, ended) for each in self.disturbances)

    async def status(self, http: httpx.AsyncClient, gateway: Program) -> dict[str, Any]:
        """The status of the whole installation, as a gateway shows it."""
        answer = await http.get(f"{self.url(gateway)}/admin/status", headers=self.auth(FREE[0]))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def until_well(self, http: httpx.AsyncClient, seconds: float = 60.0) -> None:
        """Wait until each gateway sees all hosts, all gateways and the store."""
        for gateway in self.gateways:
            status: dict[str, Any] = {}
            with anyio.move_on_after(seconds):
                while not _is_well(status := await self.status(http, gateway)):  # noqa: ASYNC110 - no event says so
                    await anyio.sleep(0.05)
            assert _is_well(status), f"{gateway.name} does not recover: {status}"


def _is_well(status: dict[str, Any]) -> bool:
    cluster = status["cluster"]
    names = [each["name"] for each in cluster["gateways"]]
    idle = all(host["serving"] == host["waiting"] == 0 for host in status["hosts"])
    return (
        idle and cluster["connected"] and names == list(GATEWAYS) and all(host["reachable"] for host in status["hosts"])
    )


def make_request(number: int, chance: random.Random, *, limited: bool) -> StormRequest:
    """A request of a random kind; those of keys with limits are of one size."""
    protocols: tuple[Protocol, ...] = (*CHATS, "responses")
    if not limited:
        protocols = (*protocols, "embeddings")
    protocol = chance.choice(protocols)
    return StormRequest(
        name=f"r{number:06}",
        words=LIMITED_WORDS if limited else chance.randrange(2, 12),
        model="vectors" if protocol == "embeddings" else chance.choice(("a", "b")),
        protocol=protocol,
        stream=protocol != "embeddings" and chance.random() < 0.6,
    )


def _link_file(folder: Path, host: str, gateway: str = "") -> Path:
    """What the engines of a host read for the gateway with this number."""
    return folder / f"{host}-link{gateway}"


def _host(folder: Path, name: str, port: int, log: Path, models: tuple[str, ...]) -> dict[str, Any]:
    return {
        "gateway": {"logging": {"level": "warning"}},
        "supervisor": {
            "listen": f"127.0.0.1:{port}",
            "token": TOKEN,
            "engine": ENGINE,
            "stop_grace_s": 1.0,
            "start_timeout_s": 15.0,
            "drain_s": 5.0,
            "backoff_s": 0.1,
            "max_backoff_s": 0.5,
            "watchdog_s": 3.0,
            "slots_max": 0,
        },
        "profiles": {
            model: {
                "model": str(folder / "model.gguf"),
                "parallel": SLOTS,
                "embeddings": model == "vectors",
                "env": {"STORM_LOG": str(log), "STORM_LINK": str(_link_file(folder, name))},
            }
            for model in models
        },
    }


def _gateway(name: str, port: int, keys: str, links: Mapping[tuple[str, str], TcpProxy]) -> dict[str, Any]:
    timeouts = {"connect_s": 2, "first_byte_s": 20, "first_token_s": 20, "between_bytes_s": 10}
    return {
        **gateway_document(port, max_wait_s=30, timeouts=timeouts, api_keys_file=keys),
        "backends": {
            host: {"kind": "supervisor", "url": f"http://127.0.0.1:{links[name, host].port}", "token": TOKEN}
            for host in HOSTS
        },
        "cluster": {
            "name": "storm",
            "store": f"redis://127.0.0.1:{links[name, 'store'].port}",
            "token": TOKEN,
            "member": name,
        },
    }


@asynccontextmanager
async def start_cluster(folder: Path, rules: Mapping[str, KeyRules]) -> AsyncIterator[ClusterWorld]:
    """Run everything; whatever is left of it is ended with the context."""
    store = RedisServer(folder / "redis")
    ports = {name: free_port() for name in (*HOSTS, *GATEWAYS)}
    targets = {**{name: ports[name] for name in HOSTS}, "store": store.port}
    async with AsyncExitStack() as stack:
        links = {
            (gateway, name): await stack.enter_async_context(proxy_to(f"http://127.0.0.1:{port}"))
            for gateway in GATEWAYS
            for name, port in targets.items()
        }
        world = ClusterWorld(folder, links, ports, store, rules)
        await anyio.to_thread.run_sync(store.start)
        try:
            async with anyio.create_task_group() as starts:
                for program in world.programs:
                    starts.start_soon(program.start)
            yield world
        finally:
            with anyio.CancelScope(shield=True):
                for link in (*links.values(), *world.engine_links.values()):
                    link.restore()
                async with anyio.create_task_group() as stops:
                    for program in world.gateways:
                        stops.start_soon(program.stop)
                async with anyio.create_task_group() as stops:
                    for program in world.hosts:
                        stops.start_soon(program.stop)
                store.kill()
