"""Interface, client and fleet together: real processes behind a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from hostler.profiles.schema import Profile
from hostler.supervisor.api import create_app
from hostler.supervisor.client import SupervisorClient
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import Snapshot, StaleEpoch, SupervisorError, SwitchMoved
from hostler.supervisor.manager import EngineManager

pytestmark = pytest.mark.anyio

TOKEN = "a-long-token"
Serve = Callable[[Starlette], AbstractAsyncContextManager[str]]
Running = Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]]
Host = tuple[EngineManager, str]


@pytest.fixture
async def host(scripted: Callable[..., Profile], running: Running, serve: Serve) -> AsyncIterator[Host]:
    profiles = [scripted("alpha"), scripted("beta", ready_after=0.1), scripted("broken", exit_code=1)]
    manager = EngineManager(profiles, SupervisorSettings(max_failures=1))
    async with running(manager), serve(create_app(manager, token=TOKEN, logs=manager.logs)) as url:
        yield manager, url


async def test_a_gateway_elsewhere_switches_as_one_next_door_would(host: Host) -> None:
    manager, url = host
    async with SupervisorClient(url, TOKEN) as client, client.events() as events:
        assert isinstance(await anext(events), Snapshot)
        alpha = await client.switch("alpha", epoch=1)
        assert alpha == await manager.locate("alpha") == await client.locate("alpha")
        beta = await client.switch("beta", epoch=2)
        assert (beta.model, await client.locate("alpha")) == ("beta", None)
        async for event in events:
            if isinstance(event, SwitchMoved) and (event.model, event.phase) == ("beta", "ready"):
                assert event.from_models == ("alpha",)
                assert event.phase_seconds
                break
        with pytest.raises(StaleEpoch):
            await client.switch("alpha", epoch=1)
        await client.unload("beta", epoch=2)
        assert [model.state for model in (await client.status()).models] == ["stopped"] * 3


async def test_a_switch_that_fails_says_why(host: Host) -> None:
    async with SupervisorClient(host[1], TOKEN) as client:
        for _ in range(2):
            with pytest.raises(SupervisorError) as raised:
                await client.switch("broken")
            assert raised.value.failure.kind == "exited"
        assert raised.value.failure.retry_after_s is not None


async def test_a_person_who_asks_for_a_model_that_failed_has_it_tried_again_at_once(
    scripted: Callable[..., Profile], running: Running, serve: Serve, journal: Any
) -> None:
    manager = EngineManager(
        [scripted("a", exit_code=1, exit_times=1)], SupervisorSettings(max_failures=1, backoff_s=60)
    )
    async with (
        running(manager),
        serve(create_app(manager, token=None)) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as http,
    ):
        for _ in range(2):
            assert (await http.post("/models/switch", json={"model": "a"})).status_code == 503
        assert len(journal.events("start")) == 1
        assert (await http.post("/models/load", json={"model": "a"})).json()["address"]["model"] == "a"


async def test_the_first_answer_tells_what_the_switch_took(host: Host) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=host[1], headers=headers, timeout=10) as http:
        first = (await http.post("/models/switch", json={"model": "beta"})).json()
        assert 0.1 <= sum(first["phase_seconds"].values()) <= first["elapsed_s"] + 0.001
        assert (await http.post("/models/switch", json={"model": "beta"})).json()["phase_seconds"] == {}


async def test_leaving_in_the_middle_of_a_switch_does_not_stop_it(host: Host) -> None:
    async with SupervisorClient(host[1], TOKEN) as client:
        async with client.events() as events, anyio.create_task_group() as tasks:
            tasks.start_soon(client.switch, "beta")
            while not isinstance(await anext(events), SwitchMoved):
                pass
            tasks.cancel_scope.cancel()
        address = await client.switch("beta")
    assert address.generation == 1


async def test_a_key_is_nowhere_but_in_addresses(host: Host) -> None:
    manager, url = host
    key = (await manager.switch("alpha")).key
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=10) as http:
        seen: list[Any] = [(await http.get(path)).text for path in ("/models/status", "/models/available")]
        seen.append((await http.get("/logs/alpha")).text)
        async with http.stream("GET", "/events") as events:
            seen.append(await anext(events.aiter_text()))
        assert "alpha" in seen[-1]
        assert key not in "".join(seen)
        assert key in (await http.get("/models/locate", params={"model": "alpha"})).text
