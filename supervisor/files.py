"""Profiles' files: fetched when they are first needed, and read for what they say of themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from hostler.profiles.gguf import FactsCache, GGUFError, digest
from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.sources import FetchProgress, cached, fetch
from hostler.supervisor.fleet import Description
from hostler.supervisor.memory import estimate

logger = logging.getLogger(__name__)


class ModelFiles:
    """What the fleet asks about files. `report` hears of downloads, from a thread."""

    def __init__(self, *, report: Callable[[FetchProgress], None] = lambda _: None) -> None:
        self._report = report
        self._facts = FactsCache()

    async def prepare(self, profile: Profile) -> Path:
        """The profile's file on disk. Raises `SourceError`."""
        path = cached(profile)
        return path if path is not None else await fetch(profile, report=self._report)

    def describe(self, profile: Profile) -> Description:
        """What can be said of the profile without running it; less, while its file is not here. Blocks."""
        path = cached(profile)
        facts = None if path is None else self._read(profile, path)
        try:
            modified_at = path.stat().st_mtime if path is not None else 0.0
        except OSError:
            modified_at = 0.0
        return Description(
            facts=facts,
            size=facts.bytes if facts else 0,
            digest=digest(profile, path),
            modified_at=modified_at,
            memory_bytes=estimate(profile, facts),
        )

    def facts(self, path: Path) -> ModelFacts | None:
        """What the file says of itself, remembered. Raises `GGUFError`; blocks."""
        return self._facts.read(path)

    def _read(self, profile: Profile, path: Path) -> ModelFacts | None:
        try:
            return self._facts.read(path)
        except GGUFError as error:
            logger.warning("profile %s: %s", profile.name, error)
            return None
