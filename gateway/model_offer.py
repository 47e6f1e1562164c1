"""What registries offer, as operators see it: sizes, what fits this machine, licences. Values only."""

from __future__ import annotations

from typing import Protocol

import msgspec

from hostler.profiles.downloads import Cancellation
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ProfileEntry
from hostler.profiles.sources import ReportProgress


class FoundRepository(msgspec.Struct, frozen=True, kw_only=True):
    """A repository that a search found. `note` says what keeps it from being downloaded by everyone."""

    name: str
    downloads: int = 0
    likes: int = 0
    note: str = ""


class OfferedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One way in which a model is stored. `reference` gets it, for a profile `name`; `fits` is `yes`, `with 32k context`,
    `partly on the GPU` or `no`, and `context` what it would run with, if it fits."""

    reference: str
    name: str
    quantization: str
    size: int
    files: int = 1
    fits: str = ""
    context: int | None = None
    chosen: bool = False


class ModelOffer(msgspec.Struct, frozen=True, kw_only=True):
    """What a repository has for this machine, which has `room` for models, in words. `projector_size` is
    downloaded as well, and `draft_size` if the chosen model is."""

    repository: str
    models: tuple[OfferedModel, ...]
    room: str = ""
    licenses: tuple[str, ...] = ()
    projector: str = ""
    projector_size: int = 0
    draft: str = ""
    draft_size: int = 0


class DownloadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model whose files are here, how it will run and `why` so, and what its registry says of it beyond that."""

    entry: ProfileEntry
    preset: Preset | None = None
    why: str = ""


class Registries(Protocol):
    """The registries of models. All block, and raise `SourceError`."""

    def search(self, words: str, cancellation: Cancellation) -> list[FoundRepository]: ...

    def offer(self, reference: str, cancellation: Cancellation) -> ModelOffer | None:
        """What a repository has; `None` for words that name none."""
        ...

    def get(self, reference: str, name: str, report: ReportProgress, cancellation: Cancellation) -> DownloadedModel:
        """Download the model for a profile of this name, unless it is here."""
        ...
