"""Gateways and supervisors of a cluster as processes, which share nothing but its store and its token."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from fakes.certificates import Pair
from fakes.ports import free_port
from system.running_gateway import FAKE_ENGINE, EngineLog, write_keys
from system.several_gateways import GatewayProgram, Program

#: A busy machine must not look like a host that is gone.
PATIENCE_S = 90


class Cluster:
    """Gateways and supervisors that share nothing but a store and a token."""

    def __init__(self, folder: Path, store: str) -> None:
        self._folder = folder
        self._store = store
        self._file, self._keys = write_keys(folder, anna=0)
        self._stack = AsyncExitStack()

    def _cluster(self, name: str, token: str) -> dict[str, str]:
        return {"store": self._store, "name": "home", "token": token, "member": name}

    def environ(self, name: str) -> dict[str, str]:
        folder = self._folder / name
        return {"HOSTLER_CACHE": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}

    async def gateway(self, name: str, *, backends: dict[str, Any] | None = None, **settings: Any) -> GatewayProgram:
        """Start a gateway, without any backend if none is given."""
        document = {
            "backends": backends or {},
            "gateway": {"listen": ["127.0.0.1:0"], "api_keys_file": self._file, **settings},
            "cluster": self._cluster(name, "secret"),
        }
        path = self._folder / f"{name}.yaml"
        path.write_text(json.dumps(document))
        return await self._stack.enter_async_context(GatewayProgram(path, self.environ(name), self._keys).started())

    async def host(
        self,
        name: str,
        *models: str,
        token: str = "secret",
        pair: Pair | None = None,
        chunk_delay: float = 0.0,
        **cluster: Any,
    ) -> tuple[Program, EngineLog]:
        """Start a supervisor with scripted engines."""
        folder = self._folder / name
        folder.mkdir()
        (folder / "model.gguf").write_bytes(b"not read by the scripted engine")
        env = {"FAKE_ENGINE": json.dumps({"log": str(folder / "engines.log"), "chunks": 3, "chunk_delay": chunk_delay})}
        section: dict[str, Any] = {
            "listen": f"127.0.0.1:{free_port()}", "engine": f"{sys.executable} -I -S {FAKE_ENGINE}", "stop_grace_s": 1.0,
            "token": "of its own, which gateways do not know",
        }  # fmt: skip
        if pair is not None:
            section["tls"] = {"cert": pair.cert, "key": pair.key}
        document = {
            "supervisor": section,
            "cluster": {**self._cluster(name, token), **cluster},
            "profiles": {model: {"model": str(folder / "model.gguf"), "env": env} for model in models},
        }
        path = self._folder / f"{name}.yaml"
        path.write_text(json.dumps(document))
        program = Program("supervisor", path, self.environ(name))
        await program.start()
        self._stack.push_async_callback(program.stop)
        return program, EngineLog(folder / "engines.log")

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._stack.aclose()


@asynccontextmanager
async def running_cluster(folder: Path, store: str) -> AsyncIterator[Cluster]:
    """A cluster without members yet; all that a test adds are stopped at the end."""
    cluster = Cluster(folder, store)
    try:
        yield cluster
    finally:
        await cluster.aclose()


async def status(gateway: GatewayProgram) -> dict[str, Any]:
    answer = await gateway.http.get("/admin/status", headers=gateway.auth())
    found: dict[str, Any] = answer.json()
    return found


async def until(gateway: GatewayProgram, condition: Callable[[dict[str, bool]], object]) -> None:
    """Wait until the hosts, with whether each is reachable, fulfil the condition."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            hosts = (await status(gateway))["hosts"]
            if condition({host["backend"]: host["reachable"] for host in hosts}):
                return
            await anyio.sleep(0.05)
