"""What takes long, told as it happens to whoever asked for it: a switch by its phases, a file by its bytes."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

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

LAST_EVENT_S = 1.0

logger = logging.getLogger(__name__)


class SwitchStream:
    """One order: carried out by the supervisor, watched through its events."""

    def __init__(self, supervisor: Supervisor, model: str, evict: Sequence[str], epoch: int | None) -> None:
        self._supervisor = supervisor
        self._model = model
        self._evict = evict
        self._epoch = epoch
        self._ready_generation: int | None = None
        self._last: SwitchMoved | None = None

    async def run(self, emit: Emit | None = None) -> SwitchResponse:
        """Give the order, pass on its phases, answer when the model is ready. Raises what `Supervisor.switch` does."""
        begun = time.monotonic()
        async with self._supervisor.events() as events:
            self._see(await anext(events))
            address: EngineAddress | None = None
            error: Exception | None = None
            ended = anyio.Event()

            async def watch() -> None:
                async for event in events:
                    if isinstance(event, SwitchMoved) and event.model == self._model:
                        self._last = event
                        if event.phase in ("ready", "failed"):
                            ended.set()
                        elif emit is not None:
                            await emit("phase", event)
                ended.set()

            async with anyio.create_task_group() as watching:
                watching.start_soon(watch)
                try:
                    address = await self._supervisor.switch(self._model, evict=self._evict, epoch=self._epoch)
                except Exception as raised:  # taken out of the group by hand, so that it comes out as itself
                    error = raised
                if address is not None and address.generation != self._ready_generation:
                    with anyio.move_on_after(LAST_EVENT_S):
                        await ended.wait()
                watching.cancel_scope.cancel()
        if error is not None:
            raise error
        assert address is not None
        spent = self._last.phase_seconds if self._last is not None and self._last.phase == "ready" else {}
        return SwitchResponse(address=address, elapsed_s=round(time.monotonic() - begun, 6), phase_seconds=spent)

    async def narrate(self, emit: Emit) -> None:
        """`run` as events: `phase`s, then `ready` with the answer or `failed` with the error."""
        try:
            answer = await self.run(emit)
        except Exception as error:
            status, body = encode_error(error)
            if status == 500:
                logger.exception("switch to %s", self._model)
            await emit("failed", SupervisorErrorResponse(error=body))
        else:
            await emit("ready", answer)

    def _see(self, first: SupervisorEvent) -> None:
        """A model that is ready before the order is given answers at once, without phases to wait for."""
        for status in first.host.models if isinstance(first, Snapshot) else ():
            if status.model == self._model and status.state == "ready":
                self._ready_generation = status.generation


class PullStream:
    """A file on its way, told as events: `progress`, then `ready` or `failed`."""

    def __init__(self, supervisor: SupportsPulling, model: str) -> None:
        self._supervisor = supervisor
        self._model = model
        self._news = anyio.Event()
        self._last: FetchProgress | None = None

    async def narrate(self, emit: Emit) -> None:
        try:
            async with anyio.create_task_group() as telling:
                telling.start_soon(self._tell, emit)
                error = await self._pull()
                telling.cancel_scope.cancel()
            if error is not None:
                raise error
        except Exception as failed:
            status, body = encode_error(failed)
            if status == 500:
                logger.exception("pull of %s", self._model)
            await emit("failed", SupervisorErrorResponse(error=body))
        else:
            await emit("ready", PullResponse(model=self._model))

    async def _pull(self) -> Exception | None:
        try:
            await self._supervisor.pull(self._model, report=self._hear)
        except Exception as error:  # taken out of the group by hand, so that it comes out as itself
            return error
        return None

    def _hear(self, progress: FetchProgress) -> None:
        self._last = progress
        self._news.set()

    async def _tell(self, emit: Emit) -> None:
        """The newest of what there is to tell: whoever reads slowly misses what is in between."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            if self._last is not None:
                await emit("progress", self._last)
