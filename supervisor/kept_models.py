"""Which models of a host are kept loaded without requests: pinned and leased ones, unless the host is drained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import anyio.to_thread
from anyio.abc import TaskGroup

from hostler.profiles.schema import Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import ModelLease
from hostler.supervisor.first_starts import FirstStarts
from hostler.supervisor.managed_models import ManagedModels
from hostler.supervisor.model import ManagedModel
from hostler.supervisor.model_leases import ModelLeases
from hostler.supervisor.process_limits import limits_of
from hostler.supervisor.state_store import DrainStore, PinStore, StateFiles


class KeptModels:
    """Applies pins, leases and drains to the models, and has `starts` start those that are kept.

    `publish` is called after each change. Models are started in `tasks`, which the manager sets.
    """

    def __init__(
        self,
        models: ManagedModels,
        state: StateFiles,
        settings: SupervisorSettings,
        *,
        starts: FirstStarts,
        publish: Callable[[], None],
    ) -> None:
        self._models = models
        self._settings = settings
        self._starts = starts
        self._publish = publish
        self._pins = PinStore(state.pins)
        self._drain = DrainStore(state.drain)
        self._leases = ModelLeases(state.model_leases, self._on_leases_change)
        self.tasks: TaskGroup | None = None

    @property
    def draining(self) -> bool:
        """Whether an operator has taken the host out of service."""
        return self._drain.draining

    @property
    def leases(self) -> tuple[ModelLease, ...]:
        """The leases that have not expired, the first to expire first."""
        return self._leases.active

    async def read(self) -> None:
        """Read what was kept at the last stop, and apply it."""
        for read in (self._pins.read, self._drain.read, self._leases.read):
            await anyio.to_thread.run_sync(read)
        for model in self._models.all():
            self.apply(model)

    async def expire_leases(self) -> None:
        """End leases when they expire, until cancelled."""
        await self._leases.run()

    async def pin(self, model: ManagedModel, pinned: bool) -> bool:
        """See `contract.SupportsPinning`."""
        self._pins.set(model.name, pinned, model.profile.pinned)
        self.apply(model)
        self._publish()
        return await anyio.to_thread.run_sync(self._pins.write)

    async def drain(self, draining: bool) -> bool:
        """See `contract.SupportsDraining`. No engine sleeps on; once back in service, kept models start again."""
        before, self._drain.draining = self._drain.draining, draining
        self._publish()
        if draining:
            for model in self._models.all():
                model.process.end_sleep()
        if before and not draining and self.tasks is not None:
            self.tasks.start_soon(self._starts.run)
        return await anyio.to_thread.run_sync(self._drain.write)

    async def add_lease(self, model: ManagedModel, holder: str, seconds: float) -> ModelLease:
        """See `contract.SupportsModelLeases`."""
        return await self._leases.add(model.name, holder, seconds)

    async def end_lease(self, lease_id: str) -> ModelLease | None:
        """See `contract.SupportsModelLeases`."""
        return await self._leases.end(lease_id)

    async def forget_others(self, names: Collection[str]) -> None:
        """Forget pins and leases of models that are not among `names`."""
        self._pins.keep_only(names)
        await self._leases.keep_only(names)

    def keeps(self, model: str, profile: Profile | None) -> bool:
        """Whether the model is kept with this profile, if there is one."""
        return self._pins.get(model, profile is not None and profile.pinned) or self._leases.is_leased(model)

    def pins(self, profile: Profile) -> bool:
        """Whether a model with this profile is pinned."""
        return self._pins.get(profile.name, profile.pinned)

    def apply(self, model: ManagedModel) -> None:
        """Apply an operator's choice, a lease, or a new profile."""
        model.pinned = self.pins(model.profile)
        model.leased = self._leases.is_leased(model.name)
        model.process.limits = limits_of(model.profile, self._settings, keep=model.kept)

    async def start_first(self) -> None:
        """Start the models that are kept, and those to preload."""
        if not self.draining:
            await self._starts.run()

    def start(self, models: Iterable[ManagedModel]) -> None:
        """Start these models, which are kept."""
        if self.tasks is not None and not self.draining:
            for model in dict.fromkeys(models):
                self.tasks.start_soon(self._starts.start_kept, model)

    def start_again(self, model: ManagedModel) -> None:
        """Start the model if it is kept."""
        if model.kept:
            self.start([model])

    def _on_leases_change(self) -> None:
        for model in self._models.all():
            self.apply(model)
        self._publish()
