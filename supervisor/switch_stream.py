"""Switches and downloads as streams of events: phases or progress, then `ready` or `failed`."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import anyio

from hostler.profiles.sources import FetchProgress
from hostler.supervisor.contract import (
    EngineAddress,
    Snapshot,
    Supervisor,
    SupervisorEvent,
    SupportsPulling,
    SwitchMoved,
)
from hostler.supervisor.events import Emit
from hostler.supervisor.schemas import PullResponse, SupervisorErrorResponse, SwitchResponse, encode_error

#: How long the last event of a switch may come after its result.
LAST_EVENT_S = 1.0

logger = logging.getLogger(__name__)


class SwitchStream:
    """One switch of a supervisor, followed through its events. `load` makes the model ready."""

    def __init__(self, supervisor: Supervisor, model: str, load: Callable[[str], Awaitable[EngineAddress]]) -> None:
        self._supervisor = supervisor
        self._model = model
        self._load = load
        self._ready_generation: int | None = None
        self._last: SwitchMoved | None = None

    async def run(self, emit: Emit | None = None) -> SwitchResponse:
        """Switch and emit each `phase`. Raises what `load` does."""
        started = time.monotonic()
        async with self._supervisor.events() as events:
            self._on_snapshot(await anext(events))
            address: EngineAddress | None = None
            error: Exception | None = None
            finished = anyio.Event()

            async def follow() -> None:
                async for event in events:
                    if isinstance(event, SwitchMoved) and event.model == self._model:
                        self._last = event
                        if event.phase in ("ready", "failed"):
                            finished.set()
                        elif emit is not None:
                            await emit("phase", event)
                finished.set()

            async with anyio.create_task_group() as following:
                following.start_soon(follow)
                try:
                    address = await self._load(self._model)
                except Exception as raised:  # raised again below, outside of the task group
                    error = raised
                if address is not None and address.generation != self._ready_generation:
                    with anyio.move_on_after(LAST_EVENT_S):
                        await finished.wait()
                following.cancel_scope.cancel()
        if error is not None:
            raise error
        assert address is not None
        phase_seconds = self._last.phase_seconds if self._last is not None and self._last.phase == "ready" else {}
        return SwitchResponse(
            address=address, elapsed_s=round(time.monotonic() - started, 6), phase_seconds=phase_seconds
        )

    async def stream(self, emit: Emit) -> None:
        """`run`, then emit `ready` with the response or `failed` with the error."""
        try:
            response = await self.run(emit)
        except Exception as error:
            status, body = encode_error(error)
            if status == 500:
                logger.exception("%s: switch failed", self._model)
            await emit("failed", SupervisorErrorResponse(error=body))
        else:
            await emit("ready", response)

    def _on_snapshot(self, first: SupervisorEvent) -> None:
        """Note a model that is ready already: there will be no phases to wait for."""
        for status in first.host.models if isinstance(first, Snapshot) else ():
            if status.model == self._model and status.state == "ready":
                self._ready_generation = status.generation


class PullStream:
    """One download of a supervisor, followed through its progress."""

    def __init__(self, supervisor: SupportsPulling, model: str) -> None:
        self._supervisor = supervisor
        self._model = model
        self._changed = anyio.Event()
        self._last: FetchProgress | None = None

    async def stream(self, emit: Emit) -> None:
        """Download; emit `progress`, then `ready` or `failed`."""
        try:
            async with anyio.create_task_group() as emitting:
                emitting.start_soon(self._emit_progress, emit)
                error = await self._pull()
                emitting.cancel_scope.cancel()
            if error is not None:
                raise error
        except Exception as failed:
            status, body = encode_error(failed)
            if status == 500:
                logger.exception("%s: pull failed", self._model)
            await emit("failed", SupervisorErrorResponse(error=body))
        else:
            await emit("ready", PullResponse(model=self._model))

    async def _pull(self) -> Exception | None:
        try:
            await self._supervisor.pull(self._model, report=self._on_progress)
        except Exception as error:  # raised again by the caller, outside of the task group
            return error
        return None

    def _on_progress(self, progress: FetchProgress) -> None:
        self._last = progress
        self._changed.set()

    async def _emit_progress(self, emit: Emit) -> None:
        """Emit the latest progress; a client that reads slowly misses intermediate values."""
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            if self._last is not None:
                await emit("progress", self._last)
