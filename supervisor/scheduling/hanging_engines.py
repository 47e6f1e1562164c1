"""Engines that only time out, whatever their health checks say: they are stopped, and the next request starts them again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from anyio.abc import TaskGroup

from hostler.supervisor.contract import (
    EngineAddress,
    Supervisor,
    SupervisorError,
    SupervisorUnreachable,
    UnknownProfile,
)
from hostler.supervisor.scheduling.lease import Lease

logger = logging.getLogger(__name__)

#: After so many timeouts in a row, with no answer between them, an engine counts as hanging.
MAX_TIMEOUTS = 3


class HangingEngines:
    """Counts the timeouts of each engine; `address` returns the present engine of a model."""

    def __init__(self, host: str, supervisor: Supervisor, address: Callable[[str], EngineAddress | None]) -> None:
        self._host = host
        self._supervisor = supervisor
        self._address = address
        #: Timeouts in a row by model, with the generation of its engine.
        self._timeouts: dict[str, tuple[int, int]] = {}

    def answered(self, model: str) -> None:
        """The model's engine has answered a request."""
        self._timeouts.pop(model, None)

    def timed_out(self, lease: Lease, tasks: TaskGroup | None) -> None:
        """The request of this lease has timed out; `tasks` stops an engine that hangs."""
        address = lease.address()
        generation, count = self._timeouts.get(lease.model, (0, 0))
        count = count + 1 if generation == address.generation else 1
        self._timeouts[lease.model] = (address.generation, count)
        if count >= MAX_TIMEOUTS and self._address(lease.model) == address and tasks is not None:
            logger.warning(
                "%s: %s: %d requests in a row timed out; restarting its engine", self._host, lease.model, count
            )
            del self._timeouts[lease.model]
            tasks.start_soon(self._stop, lease.model)

    async def _stop(self, model: str) -> None:
        try:
            await self._supervisor.unload(model)
        except (SupervisorError, SupervisorUnreachable, UnknownProfile) as error:
            logger.warning("%s: %s: its engine cannot be stopped: %s", self._host, model, error)
