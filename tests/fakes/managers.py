"""Managers of engines: the states of their models, requests to them, and waiting for a change."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import httpx

from hostler.supervisor.contract import EngineAddress, Snapshot, SwitchMoved
from hostler.supervisor.manager import EngineManager


def states(manager: EngineManager) -> dict[str, str]:
    """The state of each model."""
    return {status.model: status.state for status in manager.status_now().models}


async def until(manager: EngineManager, condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds after one of the manager's events."""
    with anyio.fail_after(20):
        async with manager.events() as events:
            async for _ in events:
                if condition():
                    return


def ready(manager: EngineManager) -> list[str]:
    """The models that are ready."""
    return [status.model for status in manager.status_now().models if status.state == "ready"]


async def chat(address: EngineAddress) -> str:
    """A request of a client to the engine."""
    headers = {"Authorization": f"Bearer {address.key}"}
    async with httpx.AsyncClient(headers=headers, timeout=60, trust_env=False) as http:
        url = f"http://{address.host}:{address.port}/v1/chat/completions"
        return (await http.post(url, json={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16})).text


async def phases(manager: EngineManager, model: str, on: Callable[[SwitchMoved], object] = lambda _: None) -> list[str]:
    """Switch to it and return the published phases."""
    received: list[str] = []
    async with manager.events() as events, anyio.create_task_group() as tasks:
        assert isinstance(await anext(events), Snapshot)
        tasks.start_soon(manager.switch, model)
        async for event in events:
            if isinstance(event, SwitchMoved):
                received.append(event.phase)
                on(event)
                if event.phase in ("ready", "failed"):
                    break
    return list(dict.fromkeys(received))
