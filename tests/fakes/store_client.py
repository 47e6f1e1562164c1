"""A connection to a test's own store, and waiting for its state."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from hostler.gateway.cluster.store import Script, Store
from hostler.gateway.cluster_settings import store_address


def make_store(url: str, scripts: Sequence[Script] = (), name: str = "home") -> Store:
    return Store(store_address(url), name=name, scripts=scripts, clock=time.monotonic, wall=time.time)


@asynccontextmanager
async def running(*runs: Callable[[], Coroutine[Any, Any, object]]) -> AsyncIterator[None]:
    """Run what is given until the context ends."""
    async with anyio.create_task_group() as tasks:
        for run in runs:
            tasks.start_soon(run)
        yield
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await anyio.sleep(0.005)
