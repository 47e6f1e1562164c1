"""Machines of the chain that sleep, wake, die and return: supervisors as processes of their own."""

from __future__ import annotations

import json
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.fake_openrouter import FakeOpenRouter, start_openrouter
from fakes.network_card import network_card, packets, wake_settings
from fakes.ports import free_port
from system.fallback_chain import answer_text, openai_backend, start_chain
from system.hostler_process import run_hostler
from system.running_gateway import FAKE_ENGINE

from hostler.gateway.backends.wake_on_lan import RESEND_S

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

ALL = "One two three"


class Machine:
    """A machine with a supervisor on a port of its own; `on` starts it, `off` pulls the plug."""

    def __init__(self, folder: Path, **profile: Any) -> None:
        self.port = free_port()
        self._folder = folder
        model = folder / "model.gguf"
        model.write_bytes(b"not read by the scripted engine")
        self._file = folder / "machine.yaml"
        self._file.write_text(
            json.dumps(
                {
                    "supervisor": {
                        "listen": f"127.0.0.1:{self.port}",
                        "engine": f"{sys.executable} -I -S {FAKE_ENGINE}",
                        "stop_grace_s": 1.0,
                    },
                    "profiles": {"m": {"model": str(model), "env": {"FAKE_ENGINE": "{}"}, **profile}},
                }
            )
        )
        self._stack = ExitStack()

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": "supervisor", "url": f"http://127.0.0.1:{self.port}"}

    async def on(self) -> None:
        running = run_hostler("supervisor", "--config", str(self._file), errors=self._folder / "machine.log")
        await anyio.to_thread.run_sync(self._stack.enter_context, running)

    async def off(self) -> None:
        await anyio.to_thread.run_sync(self._stack.close)


async def test_a_sleeping_machine_is_woken_by_packets_in_intervals_and_serves_the_waiting_requests(
    tmp_path: Path, cloud: FakeOpenRouter
) -> None:
    machine = Machine(tmp_path)
    with network_card() as card:
        wake = wake_settings(card)
        backends = {"pc": {**machine.settings, "wake": wake}, "cloud": openai_backend(cloud)}
        switching = {"progress_after_s": 0, "progress_every_s": 0.1}
        async with start_chain(tmp_path, backends, gateway={"switching": switching}) as chain:
            responses, began_at = [], anyio.current_time()

            async def ask() -> None:
                responses.append(await chain.chat(stream=True))

            async with anyio.create_task_group() as clients:
                for _ in range(3):
                    clients.start_soon(ask)
                await anyio.wait_readable(card)
                await machine.on()
            try:
                for response in responses:
                    assert response.headers.get("x-hostler-reason") is None
                    assert "wak" in response.text.lower()
                assert [event.backend for event in chain.finished] == ["pc"] * 3
                assert cloud.requests == []
                # However many requests wait.
                intervals = (anyio.current_time() - began_at) // RESEND_S
                assert 1 <= packets(card) <= 1 + intervals
            finally:
                await machine.off()


async def test_falls_back_from_a_machine_that_does_not_wake_up(tmp_path: Path, cloud: FakeOpenRouter) -> None:
    machine = Machine(tmp_path)
    with network_card() as card:
        wake = wake_settings(card, wait_s=1.0)
        backends = {"pc": {**machine.settings, "wake": wake}, "cloud": openai_backend(cloud)}
        async with start_chain(tmp_path, backends) as chain:
            for _ in range(3):
                response = await chain.chat()
                assert answer_text(response) == f"cloud:{ALL}"
            first, *_ = chain.finished
            assert first.reason == "pc: unreachable"
            assert first.seconds >= 1.0
        # Later requests do not wait: it is not woken again.
        card.recv(200)
        with pytest.raises(BlockingIOError):
            card.recv(200)


async def test_a_machine_that_dies_and_comes_back_is_used_again(tmp_path: Path, cloud: FakeOpenRouter) -> None:
    machine = Machine(tmp_path)
    await machine.on()
    try:
        async with start_chain(tmp_path, {"pc": machine.settings, "cloud": openai_backend(cloud)}) as chain:
            assert (await chain.chat()).headers["x-hostler-backend"] == "pc"
            await machine.off()
            for _ in range(5):
                assert answer_text(await chain.chat()) == f"cloud:{ALL}"
            await machine.on()
            with anyio.fail_after(20):
                while (await chain.chat()).headers["x-hostler-backend"] != "pc":  # noqa: ASYNC110 - a process comes up
                    await anyio.sleep(0.05)
    finally:
        await machine.off()


async def test_a_profile_may_have_its_own_chain_and_be_local_only(tmp_path: Path, cloud: FakeOpenRouter) -> None:
    machine = Machine(tmp_path, chain=["second", "pc"], local_only=True)
    await machine.on()
    try:
        async with start_openrouter("second") as second:
            backends = {
                "pc": machine.settings,
                "cloud": openai_backend(cloud, local=False),
                "second": openai_backend(second, local=False),
            }
            async with start_chain(tmp_path, backends) as chain:
                response = await chain.chat()
                assert response.headers["x-hostler-backend"] == "pc"
                assert response.headers["x-hostler-reason"] == "second: non_local"
                assert cloud.requests == second.requests == []
    finally:
        await machine.off()


@pytest.mark.parametrize("known", ["remembered", "declared"])
async def test_a_machine_asleep_since_before_the_gateway_started_is_woken_for_its_models(
    tmp_path: Path, cloud: FakeOpenRouter, known: str
) -> None:
    machine = Machine(tmp_path, aliases=["nick"])
    state = tmp_path / "state" / "history.sqlite3" if known == "remembered" else None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as card:
            card.bind(("127.0.0.1", 0))
            card.setblocking(False)
            wake = wake_settings(card)
            pc = {**machine.settings, "wake": wake, **({"models": {"m": "m"}} if known == "declared" else {})}
            backends = {"pc": pc, "cloud": {**openai_backend(cloud), "models": {"other": "other"}}}
            if known == "remembered":
                await machine.on()
                async with start_chain(tmp_path, backends, history=state) as chain:
                    assert (await chain.chat()).headers["x-hostler-backend"] == "pc"
                await machine.off()
            async with start_chain(tmp_path, backends, history=state) as chain:
                listed = {model["id"] for model in (await chain.http.get("/v1/models")).json()["data"]}
                assert {"m", "other"} <= listed
                # What it does not have does not wake it.
                assert answer_text(await chain.chat(model="other")) == f"cloud:{ALL}"
                with pytest.raises(BlockingIOError):
                    card.recv(200)
                names = ["m", "nick"] if known == "remembered" else ["m"]
                responses = []

                async def ask(name: str) -> None:
                    responses.append(await chain.chat(model=name))

                async with anyio.create_task_group() as clients:
                    for name in names:
                        clients.start_soon(ask, name)
                    await anyio.wait_readable(card)
                    await machine.on()
                assert [response.headers["x-hostler-backend"] for response in responses] == ["pc"] * len(names)
    finally:
        await machine.off()


async def test_a_local_only_model_stays_local_while_its_machine_sleeps(tmp_path: Path, cloud: FakeOpenRouter) -> None:
    machine = Machine(tmp_path, local_only=True)
    backends = {"pc": machine.settings, "cloud": openai_backend(cloud, local=False)}
    state = tmp_path / "state" / "history.sqlite3"
    await machine.on()
    try:
        async with start_chain(tmp_path, backends, history=state):
            pass
    finally:
        await machine.off()
    async with start_chain(tmp_path, backends, history=state) as chain:
        assert (await chain.chat()).status_code == 503
    assert cloud.requests == []
    # An unreadable file counts as missing, and what is not known must stay local.
    state.with_name("machines.json").write_bytes(b"{\xff")
    async with start_chain(tmp_path, backends, history=state) as chain:
        response = await chain.chat()
        assert response.status_code == 503
        assert "cloud is not local" in response.json()["error"]["message"]
    assert cloud.requests == []
