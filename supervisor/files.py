"""Profiles' files: fetched when they are first needed, and read for what they say of themselves."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from hostler.profiles.fetching import cached, fetch
from hostler.profiles.gguf import FactsCache, GGUFError, digest
from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.sources import FetchProgress
from hostler.supervisor.member import Description

logger = logging.getLogger(__name__)


Prepare = Callable[[Profile, Callable[[FetchProgress], None]], Awaitable[Path]]
"""Turns a profile's `model` into a file on disk; quick when it is there, else it tells how far it is.

Raises `SourceError` or `SupervisorError`.
"""

Describe = Callable[[Profile], Description]
"""Reads what can be known of a profile's file; runs in a thread, and must not fail for a file that is not there."""


async def local_path(profile: Profile, report: Callable[[FetchProgress], None]) -> Path:
    """The simplest `Prepare`: the profile names a file."""
    return _path(profile)


def look_at_file(profile: Profile) -> Description:
    """The simplest `Describe`: size and time of the file, and a digest that tells profiles apart."""
    digest = hashlib.sha256(f"{profile.name}\n{profile.model}\n{profile.context}".encode()).hexdigest()
    try:
        status = _path(profile).stat()
    except (OSError, ValueError):
        return Description(digest=digest)
    return Description(digest=digest, size=status.st_size, modified_at=status.st_mtime)


class ModelFiles:
    """What the fleet asks about files. `report` hears of downloads, from a thread."""

    def __init__(self, *, report: Callable[[FetchProgress], None] = lambda _: None) -> None:
        self._report = report
        self._facts = FactsCache()

    async def prepare(self, profile: Profile, report: Callable[[FetchProgress], None]) -> Path:
        """The profile's file on disk; `report` hears how far its download is. Raises `SourceError`."""
        path = cached(profile)
        if path is not None:
            return path
        loop = asyncio.get_running_loop()

        def both(progress: FetchProgress) -> None:  # in a thread, which may outlive the loop
            self._report(progress)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(report, progress)

        return await fetch(profile, report=both)

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


def _path(profile: Profile) -> Path:
    return Path(profile.model).expanduser()
