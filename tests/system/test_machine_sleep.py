"""A machine that sleeps when idle, and is woken by the next request: its supervisor is stopped and continued by signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil
import pytest
from fakes.ports import free_port
from system.hostler_process import HostlerProcess, run_hostler
from system.running_gateway import FAKE_ENGINE, RunningGateway, StartGateway

pytestmark = pytest.mark.anyio

#: How long a machine takes to wake up, in seconds.
RESUMES_S = 1.5

#: Stops the supervisor, as a suspended machine stops everything; fails until the file exists.
STOP = "sh -c 'test -e %s && kill -STOP $PPID'"


class SleepingMachine:
    """A supervisor that puts itself to sleep, and a network card that wakes it."""

    def __init__(self, process: HostlerProcess, backend: dict[str, Any], may_sleep: Path) -> None:
        self.may_sleep = may_sleep
        self.process = process
        self.backend = backend
        self.packets = 0

    @property
    def asleep(self) -> bool:
        return psutil.Process(self.process.process.pid).status() == psutil.STATUS_STOPPED

    def wake(self) -> None:
        os.kill(self.process.process.pid, signal.SIGCONT)

    async def until_asleep(self) -> None:
        with anyio.fail_after(30):
            while not self.asleep:  # noqa: ASYNC110 - another process
                await anyio.sleep(0.01)

    async def listen(self, card: socket.socket) -> None:
        while True:
            await anyio.wait_readable(card)
            card.recv(200)
            self.packets += 1
            if self.asleep:  # else the packet comes too early, and another one is needed
                await anyio.sleep(RESUMES_S)
                self.wake()


@asynccontextmanager
async def sleeping_machine(folder: Path, after_s: float, **script: Any) -> AsyncIterator[SleepingMachine]:
    """A machine whose engine follows `script`; it may sleep once its file exists."""
    model, port = folder / "model.gguf", free_port()
    model.write_bytes(b"not read by the scripted engine")
    script = {"log": str(folder / "engines.log"), **script}
    document = {
        "supervisor": {
            "listen": f"127.0.0.1:{port}",
            "engine": f"{sys.executable} -I -S {FAKE_ENGINE}",
            "sleep": {"after_s": after_s, "command": STOP % (folder / "may-sleep")},
        },
        "profiles": {"m": {"model": str(model), "env": {"FAKE_ENGINE": json.dumps(script)}}},
    }
    file = folder / "machine.json"
    file.write_text(json.dumps(document))
    environ = {"HOSTLER_CACHE": str(folder / "machine-cache")}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as card:
        card.bind(("127.0.0.1", 0))
        card.setblocking(False)
        running = run_hostler("supervisor", "--config", str(file), errors=folder / "machine.log", environ=environ)
        process = await anyio.to_thread.run_sync(running.__enter__)
        wake = {"mac": "01:23:45:67:89:ab", "broadcast": f"127.0.0.1:{card.getsockname()[1]}", "wait_s": 30}
        machine = SleepingMachine(
            process, {"kind": "supervisor", "url": f"http://127.0.0.1:{port}", "wake": wake}, folder / "may-sleep"
        )
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(machine.listen, card)
                yield machine
                tasks.cancel_scope.cancel()
        finally:
            machine.wake()
            await anyio.to_thread.run_sync(partial(running.__exit__, None, None, None))


@asynccontextmanager
async def waking_gateway(
    start_gateway: StartGateway, folder: Path, after_s: float, **script: Any
) -> AsyncIterator[tuple[SleepingMachine, RunningGateway]]:
    """A sleeping machine, and a gateway that wakes it."""
    async with (
        sleeping_machine(folder, after_s, **script) as machine,
        start_gateway({}, backends={"pc": machine.backend}) as gateway,
    ):
        yield machine, gateway


async def models(gateway: RunningGateway) -> list[str]:
    return [each["id"] for each in (await gateway.http.get("/v1/models")).json()["data"]]


async def test_an_idle_machine_sleeps_keeps_its_models_and_is_woken_by_a_request(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with waking_gateway(start_gateway, tmp_path, 0.5) as (machine, gateway):
        assert (await gateway.chat("m")).status_code == 200
        machine.may_sleep.touch()
        for _ in range(2):
            await machine.until_asleep()
            assert await models(gateway) == ["m"]
            packets = machine.packets
            assert (await gateway.chat("m")).status_code == 200
            assert machine.packets > packets
        await machine.until_asleep()
        async with gateway.stream("m") as answer:
            text = (await answer.aread()).decode()
        assert "[DONE]" in text and '"error"' not in text


async def test_requests_at_the_moment_of_falling_asleep_are_answered(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with waking_gateway(start_gateway, tmp_path, 0.3) as (machine, gateway):
        await gateway.chat("m")
        machine.may_sleep.touch()
        for number in range(4):
            await anyio.sleep(0.28 + number * 0.03)
            answer = await gateway.chat("m")
            assert answer.status_code == 200, (number, answer.text)


async def stays_awake(machine: SleepingMachine) -> bool:
    """Whether it does not fall asleep within several times its idle time."""
    with anyio.move_on_after(1.5):
        await machine.until_asleep()
    return not machine.asleep


async def take_lease(gateway: RunningGateway) -> str:
    """The id of a lease of the model."""
    body = {"model": "m", "for": "1h", "holder": "ann"}
    lease = await gateway.http.post("/admin/leases", json=body, timeout=40)
    assert lease.status_code == 200, lease.text
    return str(lease.json()["id"])


async def test_a_leased_model_keeps_the_machine_awake(start_gateway: StartGateway, tmp_path: Path) -> None:
    async with waking_gateway(start_gateway, tmp_path, 0.2) as (machine, gateway):
        lease = await take_lease(gateway)
        machine.may_sleep.touch()
        assert await stays_awake(machine)
        await gateway.http.delete(f"/admin/leases/{lease}")
        await machine.until_asleep()


async def test_a_long_answer_keeps_the_machine_awake(start_gateway: StartGateway, tmp_path: Path) -> None:
    end = tmp_path / "end"
    async with waking_gateway(start_gateway, tmp_path, 0.2, last_when=str(end)) as (machine, gateway):
        async with gateway.stream("m") as answer:
            chunks = answer.aiter_text()
            await anext(chunks)
            machine.may_sleep.touch()
            assert await stays_awake(machine)
            end.touch()
            assert "[DONE]" in "".join([chunk async for chunk in chunks])
        await machine.until_asleep()


async def test_a_machine_suspended_by_its_system_is_woken_and_answers(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with waking_gateway(start_gateway, tmp_path, 3600) as (machine, gateway):
        await gateway.chat("m")
        os.kill(machine.process.process.pid, signal.SIGSTOP)
        await gateway.until_status(lambda hosts: not hosts["pc"]["reachable"])
        assert await models(gateway) == ["m"]
        assert (await gateway.chat("m")).status_code == 200


async def test_an_operator_wakes_the_machine_and_a_lease_keeps_it_awake(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    async with waking_gateway(start_gateway, tmp_path, 0.3) as (machine, gateway):
        assert (await gateway.chat("m")).status_code == 200
        machine.may_sleep.touch()
        await machine.until_asleep()
        packets = machine.packets
        assert (await gateway.http.post("/admin/load", json={"model": "m"}, timeout=40)).status_code == 200
        assert machine.packets > packets
        await machine.until_asleep()
        packets = machine.packets
        await take_lease(gateway)
        assert machine.packets > packets
        assert await stays_awake(machine)
