"""Out of file descriptors: said as such to clients and in the log, blamed on no backend, and over once some are free."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import psutil
import pytest
from security.hostile_backend import GatewayProcess, chat, gateway_process, hostile_backend

pytestmark = pytest.mark.anyio

LIMIT = 80


async def until_logged(gateway: GatewayProcess, text: str) -> None:
    with anyio.fail_after(20):
        while text not in gateway.log:  # noqa: ASYNC110 - a file of another process
            await anyio.sleep(0.05)


@pytest.mark.parametrize("local", [True, False])
async def test_it_is_told_and_ends_with_its_cause(tmp_path: Path, local: bool) -> None:
    async with hostile_backend() as backend:
        backend.closes_after_checks = True  # the request needs a descriptor of its own
        backends = {"one": {"kind": "openai", "url": backend.url, "local": local, "models": {"m": "m"}}}
        async with gateway_process(tmp_path, backends, breaker={"failures": 1}) as gateway:
            assert (await gateway.http.get("/healthz")).status_code == 200  # a connection for later
            address = urlsplit(str(gateway.http.base_url))
            gateway.process.rlimit(psutil.RLIMIT_NOFILE, (LIMIT, LIMIT))
            held = []
            try:
                for _ in range(2 * LIMIT):
                    held.append(socket.create_connection((address.hostname, address.port), timeout=5))
                await until_logged(gateway, "out of file descriptors")
                refused = await chat(gateway.http, "openai")
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "out_of_descriptors"
                assert int(refused.headers["retry-after"]) >= 1
            finally:
                for each in held:
                    each.close()
            await until_logged(gateway, "available again")
            assert (await chat(gateway.http, "openai")).status_code == 200
            assert "Traceback" not in gateway.log
