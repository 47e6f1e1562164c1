"""Managers of models whose memory is known, on a machine with a known amount of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hostler.profiles.schema import Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.manager import EngineManager
from hostler.supervisor.memory import GIB

#: Engines may start before others have stopped.
START_EARLY = SupervisorSettings(stop_grace_s=5, backoff_s=0.05, prepare_next="start")


def manager_of(*profiles: Profile, settings: SupervisorSettings = START_EARLY, free: int = 100 * GIB) -> EngineManager:
    """A manager on a machine with so many bytes free."""
    return EngineManager(profiles, settings, free_memory=lambda: free)


def sized(scripted: Callable[..., Profile], name: str, gib: int = 4, **script: Any) -> Profile:
    """The profile of a scripted engine that says how much memory it takes."""
    return scripted(name, profile={"memory": gib * GIB}, **script)
