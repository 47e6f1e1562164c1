"""What is done for the model that is loaded next, while others still finish their answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import anyio

from hostler.supervisor.contract import SupervisorError
from hostler.supervisor.model import ManagedModel
from hostler.supervisor.spare_memory import SpareMemory
from hostler.supervisor.switches import SwitchCoordinator

logger = logging.getLogger(__name__)


class NextModel:
    """Fetches and reads ahead the file of the next model or, if `mode` allows it and there is spare memory, starts its engine.

    `others` lists the models that are alive besides one.
    """

    def __init__(
        self, mode: Literal["off", "read", "start"], switches: SwitchCoordinator, spare: SpareMemory, *,
        others: Callable[[ManagedModel], list[ManagedModel]],
    ) -> None:  # fmt: skip
        self._mode = mode
        self._switches = switches
        self._spare = spare
        self._others = others
        self._scope: anyio.CancelScope | None = None

    async def prepare(self, model: ManagedModel | None, *, start: bool) -> None:
        """See `contract.SupportsPreparing`."""
        if self._scope is not None:
            self._scope.cancel()
        if model is None or self._mode == "off":
            return
        with anyio.CancelScope() as self._scope:
            await model.lifecycle.fetch_file()
            if start and self._mode == "start" and await self._spare.holds(model):
                await self._start(model)
            elif not model.process.staying:
                await model.lifecycle.read_ahead(await self._spare.unused_memory(model))

    async def _start(self, model: ManagedModel) -> None:
        """Start its engine. Cancelled before that is ready, it is stopped, unless a switch to it has begun."""
        names = ", ".join(other.name for other in self._others(model))
        logger.info("%s: starting while %s finish their answers", model.name, names)
        switch = self._switches.begin_overlap(model)
        try:
            await switch.result.wait()
        except SupervisorError as error:
            if not self._spare.excuse(model, error.failure):
                raise
        finally:
            if not switch.result.settled and self._switches.current(model.name) is switch:
                self._switches.cancel(model.name, f'model "{model.name}" is not needed any more')
                model.process.request_stop()
