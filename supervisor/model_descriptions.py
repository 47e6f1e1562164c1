"""What is known of the models of a host without running them: their files and programs, looked at again where that failed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import anyio

from hostler.supervisor.llama_program import LlamaPrograms
from hostler.supervisor.model import FAILED_S, ManagedModel

#: Models that no engine could load are looked at this often, in seconds.
RECHECK_S: Final = FAILED_S / 3

#: How long the first subscribers to a host wait for its models' descriptions, in seconds.
DESCRIBED_S: Final = 1.0


class ModelDescriptions:
    """Describes the models of a host. `publish` is called after each change."""

    def __init__(
        self, models: Callable[[], Collection[ManagedModel]], programs: LlamaPrograms, publish: Callable[[], None]
    ) -> None:
        self._models = models
        self._programs = programs
        self._publish = publish
        self._described = anyio.Event()

    async def described(self) -> None:
        """Wait until the files have been described once, not for long."""
        with anyio.move_on_after(DESCRIBED_S):
            await self._described.wait()

    async def describe(self) -> None:
        """Describe all files, then the programs of all models."""
        for model in list(self._models()):
            await model.lifecycle.describe_file()
        self._described.set()
        self._publish()
        before = self._programs.known()
        for model in list(self._models()):
            await model.lifecycle.read_program()
        if self._programs.known() != before:
            self._publish()

    async def describe_shared_file(self, model: ManagedModel) -> None:
        """Describe the file of `model` for every model that uses it."""
        for each in [each for each in self._models() if each.profile.model == model.profile.model]:
            if each.lifecycle.description.facts is None:
                await each.lifecycle.describe_file()
        self._publish()

    async def recheck_disabled(self, on_enabled: Callable[[ManagedModel], None]) -> None:
        """Look again at models that no engine could load. The report is repeated, since it is valid for a while only."""
        while True:
            await anyio.sleep(RECHECK_S)
            disabled = [model for model in self._models() if model.lifecycle.disabled is not None]
            for model in disabled:
                await model.lifecycle.describe_file()
                if model.lifecycle.disabled is None:
                    on_enabled(model)
            if disabled:
                self._publish()
