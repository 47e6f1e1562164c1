"""Managers of engines: the states of their models, and waiting for a change."""

from __future__ import annotations

from collections.abc import Callable

import anyio

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
