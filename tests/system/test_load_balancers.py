"""Two gateways behind one address, with the configurations that are shipped for HAProxy and Caddy."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from fakes.ports import free_port
from system.several_gateways import GatewayProgram, Installation, installation, words

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

SHIPPED = Path(__file__).parent.parent.parent / "deploy" / "ha"
#: In these configurations, the address of each gateway.
ADDRESSES = ("192.168.1.11:8000", "192.168.1.12:8000")

#: An answer of 60 words takes 1.2 seconds.
PROFILES = {"a": {"parallel": 8, "script": {"chunks": 60, "chunk_delay": 0.02, "queue": False}}}
WHOLE = "".join(f"word{number} " for number in range(60))


@contextmanager
def haproxy(folder: Path, port: int, gateways: Sequence[str]) -> Iterator[None]:
    """HAProxy with the shipped configuration, at this port instead."""
    file = folder / "haproxy.cfg"
    file.write_text((SHIPPED / "haproxy.cfg").read_text().replace("bind :8000", f"bind 127.0.0.1:{port}"))
    addresses = {f"GATEWAY_{number}": address for number, address in enumerate(gateways, 1)}
    with _running(folder, ["haproxy", "-f", str(file)], addresses):
        yield


@contextmanager
def caddy(folder: Path, port: int, gateways: Sequence[str]) -> Iterator[None]:
    """Caddy with the shipped configuration, without HTTPS and at this port instead."""
    text = (SHIPPED / "Caddyfile").read_text().replace("llm.example.org {", f"http://127.0.0.1:{port} {{")
    for shipped, address in zip(ADDRESSES, gateways, strict=True):
        assert shipped in text
        text = text.replace(shipped, address)
    file = folder / "Caddyfile"
    file.write_text("{\n\tadmin off\n}\n" + text)
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)]
    with _running(folder, command, {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}):
        yield


@contextmanager
def _running(folder: Path, command: Sequence[str], environ: dict[str, str]) -> Iterator[None]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environ})
        try:
            yield
        finally:
            process.kill()
            process.wait()


Balancer = Callable[[Path, int, Sequence[str]], object]


@pytest.fixture(params=[haproxy, caddy], ids=["haproxy", "caddy"])
def balancer(request: pytest.FixtureRequest) -> Balancer:
    return request.param  # type: ignore[no-any-return]


@asynccontextmanager
async def behind(balancer: Balancer, folder: Path) -> AsyncIterator[tuple[Installation, httpx.AsyncClient]]:
    """Two gateways, and a client that knows the address of the proxy before them."""
    port = free_port()
    settings = {"trusted_proxies": ["127.0.0.1"], "drain_s": 20}
    async with installation(folder / "host", PROFILES, settings=settings) as all_of_it:
        gateways = [gateway.running.address.removeprefix("http://") for gateway in all_of_it.gateways]
        with balancer(folder, port, gateways):  # type: ignore[attr-defined]
            auth = all_of_it.gateways[0].auth()
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", headers=auth, timeout=30, trust_env=False
            ) as http:
                with anyio.fail_after(20):
                    while not await _serves(http):  # noqa: ASYNC110 - the proxy has no event to wait for
                        await anyio.sleep(0.02)
                yield all_of_it, http


async def _serves(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/v1/models")).status_code == 200
    except httpx.TransportError:
        return False


async def answer(http: httpx.AsyncClient, ends: list[str], started: Callable[[], None] = lambda: None) -> None:
    """Stream an answer; appends its text, or "broken" if it ended with an error."""
    body = {"model": "a", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    text = ""
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200, await response.aread()
            async for piece in response.aiter_text():
                if "word0 " in piece:
                    started()
                text += piece
    except httpx.TransportError:
        ends.append("broken")
        return
    ends.append(words(httpx.Response(200, text=text)) if "[DONE]" in text else "broken")


async def until_closed(gateway: GatewayProgram) -> None:
    """Wait until the gateway accepts no connections any more."""
    host, _, port = gateway.running.address.removeprefix("http://").rpartition(":")
    with anyio.fail_after(20):
        while True:
            try:
                stream = await anyio.connect_tcp(host, int(port))
            except OSError:
                return
            await stream.aclose()


def caddy_resends() -> bool:
    """Whether this version of Caddy sends a request whose connection was refused elsewhere, with its body."""
    version = subprocess.run(["caddy", "version"], capture_output=True, text=True, check=True).stdout
    numbers = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) >= (2, 11, 2)


async def until_noticed(http: httpx.AsyncClient) -> None:
    """Wait until so many requests in a row went to the gateway that is left, that no other is used."""
    in_a_row = 0
    with anyio.fail_after(20):
        while in_a_row < 6:
            response = await http.post("/v1/chat/completions", json={"model": "no such model", "messages": []})
            in_a_row = in_a_row + 1 if response.status_code == 404 else 0


async def end_one(balancer: Balancer, folder: Path, number: signal.Signals) -> tuple[list[str], list[str]]:
    """Send a signal to one of two gateways in the middle of four answers; returns how those ended, and ten later ones."""
    during: list[str] = []
    after: list[str] = []
    async with behind(balancer, folder) as (all_of_it, http):
        begun = 0
        all_begun = anyio.Event()

        def started() -> None:
            nonlocal begun
            begun += 1
            if begun == 4:
                all_begun.set()

        async with anyio.create_task_group() as clients:
            for _ in range(4):
                clients.start_soon(answer, http, during, started)
            await all_begun.wait()
            gateway = all_of_it.gateways[0]
            gateway.signal(number)
            # A connection that the kernel has accepted meanwhile would be reset.
            await until_closed(gateway)
            if balancer is caddy and not caddy_resends():
                await until_noticed(http)
            for _ in range(10):
                clients.start_soon(answer, http, after)
    return during, after


async def test_a_killed_gateway_costs_only_its_own_answers(balancer: Balancer, tmp_path: Path) -> None:
    during, after = await end_one(balancer, tmp_path, signal.SIGKILL)
    assert sorted(during) == ["broken", "broken", WHOLE, WHOLE]
    assert after == [WHOLE] * 10


async def test_a_gateway_that_is_updated_costs_nothing(balancer: Balancer, tmp_path: Path) -> None:
    during, after = await end_one(balancer, tmp_path, signal.SIGTERM)
    assert during == [WHOLE] * 4
    assert after == [WHOLE] * 10


async def test_the_gateways_know_the_client(balancer: Balancer, tmp_path: Path) -> None:
    async with behind(balancer, tmp_path) as (all_of_it, http):
        # No proxy that is trusted, so what it claims is not believed: the proxy says who sent it.
        assert (await http.get("/v1/models", headers={"X-Forwarded-For": "10.1.2.3"})).status_code == 200
        wrong = {"Authorization": "Bearer wrong", "X-Forwarded-For": "10.1.2.3"}
        assert (await http.get("/v1/models", headers=wrong)).status_code == 401
        logs = "".join(gateway.log for gateway in all_of_it.gateways)
    assert "10.1.2.3" not in logs
