"""Operators' actions at a host: its machine is woken for them, and one that cannot be reached is an error in the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from hostler.adapters.errors import BackendUnavailable, GatewayError
from hostler.gateway.backends.hop import Hop

#: How often the host is looked at, in seconds: it may fall asleep while the action waits for something.
_LOOK_S: Final = 0.25

#: How long a host that cannot be woken may be unreachable, in seconds: its supervisor may be restarting.
RETURNS_S: Final = 30.0


async def run_awake(hop: Hop, act: Callable[[], Awaitable[None]], *, returns_s: float = RETURNS_S) -> None:
    """Await `act` while the host can be reached. Raises `GatewayError`, and `BackendUnavailable` if it cannot be."""
    errors: list[GatewayError] = []

    async def acting() -> None:
        try:
            await act()
        except GatewayError as error:
            errors.append(error)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        try:
            await _reach(hop, returns_s)
            tasks.start_soon(acting)
            while True:
                await anyio.sleep(_LOOK_S)
                await _reach(hop, returns_s)
        except GatewayError as error:
            errors.append(error)
            tasks.cancel_scope.cancel()
    if errors:
        raise errors[0]


async def _reach(hop: Hop, returns_s: float) -> None:
    """Wait until the host can be reached."""
    if hop.reachable():
        return
    if hop.wake_on_lan is not None:
        await hop.wake_on_lan.wake_and_wait()
        return
    with anyio.move_on_after(returns_s):
        while not hop.reachable():  # noqa: ASYNC110 - rare, and what is asked is a callable
            await anyio.sleep(_LOOK_S)
    if not hop.reachable():
        raise BackendUnavailable(f"{hop.name} cannot be reached", backend=hop.name)
