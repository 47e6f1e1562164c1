"""The models of a host by name, those that are about to leave it included."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from hostler.profiles.schema import Profile
from hostler.supervisor.contract import UnknownProfile
from hostler.supervisor.engine_command import engine_profile
from hostler.supervisor.model import ManagedModel


class ManagedModels:
    """The models of an `EngineManager`, in the order of its profiles. `create` makes one for a profile.

    A retired model has left the configuration, but its engine may still finish its answers.
    """

    def __init__(self, create: Callable[[Profile], ManagedModel]) -> None:
        self._create = create
        self._models: dict[str, ManagedModel] = {}

    def all(self) -> Collection[ManagedModel]:
        """All models, also retired ones."""
        return self._models.values()

    def find(self, name: str) -> ManagedModel | None:
        """The model of this name, if there is one, perhaps retired."""
        return self._models.get(name)

    def get(self, name: str) -> ManagedModel:
        """The model of this name. Raises `UnknownProfile`."""
        model = self._models.get(name)
        if model is None or model.retired:
            raise UnknownProfile(f'no profile "{name}" on this host; there are: {", ".join(sorted(self._models))}')
        return model

    def others(self, model: ManagedModel) -> list[ManagedModel]:
        """The models besides this one whose engines run."""
        return [other for other in self._models.values() if other is not model and other.process.alive]

    def outdated(self, profiles: Iterable[Profile]) -> list[ManagedModel]:
        """The models that these profiles do not have, or start by another command."""
        wanted = {profile.name: profile for profile in profiles}
        return [
            model
            for name, model in self._models.items()
            if name not in wanted or engine_profile(wanted[name]) != engine_profile(model.profile)
        ]

    def add(self, profile: Profile) -> ManagedModel:
        """Add a model for this profile."""
        model = self._models[profile.name] = self._create(profile)
        return model

    def retire_others(self, names: Collection[str]) -> None:
        """Retire the models that are not among `names`."""
        for name, model in self._models.items():
            if name not in names:
                model.retired = True

    def remove_retired(self, order: Sequence[str]) -> None:
        """Remove retired models, and bring the others, which are `order`, into its order."""
        for name in [name for name, model in self._models.items() if model.retired]:
            self._models.pop(name).retire()
        self._models = {name: self._models[name] for name in order}
