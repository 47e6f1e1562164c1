"""Starts without a request: those of pinned and leased models, and of models to preload."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection

import anyio

from hostler.supervisor.contract import EngineAddress, SupervisorError, UnknownProfile
from hostler.supervisor.model import ManagedModel

logger = logging.getLogger(__name__)


class FirstStarts:
    """Starts models by `switch`. `is_crowded` says whether another model would have to be unloaded for one."""

    def __init__(
        self, models: Callable[[], Collection[ManagedModel]], *, switch: Callable[[str], Awaitable[EngineAddress]],
        is_crowded: Callable[[ManagedModel], bool], describe: Callable[[ManagedModel], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._models = models
        self._switch = switch
        self._is_crowded = is_crowded
        self._describe = describe

    async def run(self) -> None:
        """Start the models that are kept, then preload others one after the other, as long as none has to be unloaded for
        them."""
        async with anyio.create_task_group() as starts:
            for model in self._models():
                if model.kept:
                    starts.start_soon(self.start_kept, model)
        for model in list(self._models()):
            if model.profile.preload and not model.kept and not model.retired:
                await self._preload(model)

    async def start_kept(self, model: ManagedModel) -> None:
        """Start a pinned or leased model; a failure is logged."""
        try:
            await self._switch(model.name)
        except (SupervisorError, UnknownProfile) as error:
            kind = "pinned" if model.pinned else "leased"
            logger.warning("%s: %s, but cannot be started: %s", model.name, kind, error)

    async def _preload(self, model: ManagedModel) -> None:
        try:
            await self._describe(model)
            if self._is_crowded(model):
                logger.warning("%s: not preloaded: another model would have to be unloaded for it", model.name)
                return
            await self._switch(model.name)
        except (SupervisorError, UnknownProfile) as error:
            logger.warning("%s: cannot be preloaded: %s", model.name, error)
