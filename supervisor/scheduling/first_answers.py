"""Reports of each engine's first answer to its supervisor: it shows whether the restored slots were used."""

from __future__ import annotations

import logging

from anyio.abc import TaskGroup

from hostler.adapters.canonical import Usage
from hostler.supervisor.contract import (
    EngineAddress,
    Supervisor,
    SupervisorError,
    SupervisorUnreachable,
    UnknownProfile,
)
from hostler.supervisor.scheduling.lease import Lease

logger = logging.getLogger(__name__)


class FirstAnswers:
    """Which process of each model has answered already."""

    def __init__(self, host: str, supervisor: Supervisor) -> None:
        self._host = host
        self._supervisor = supervisor
        self._reported: dict[str, EngineAddress] = {}

    def report(self, lease: Lease, tasks: TaskGroup | None) -> None:
        """Report the answer of a lease that has ended, if it is the first one of its process."""
        address, usage = lease.address(), lease.usage
        reported = self._reported.get(address.model) == address
        self._reported[address.model] = address
        if not reported and usage is not None and tasks is not None:
            tasks.start_soon(self._send, address, usage)

    async def _send(self, address: EngineAddress, usage: Usage) -> None:
        try:
            await self._supervisor.report_first_response(
                address.model, generation=address.generation, cached=usage.cached_tokens, prompt=usage.prompt_tokens
            )
        except (SupervisorError, SupervisorUnreachable, UnknownProfile) as error:
            logger.debug("%s: %s", self._host, error)
