"""A profile of a host with its process, its output, and what is known of its file and its memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import anyio
import msgspec

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.contract import ProfileInfo
from hostler.supervisor.engine_client import EngineActivity
from hostler.supervisor.logs import EngineLog
from hostler.supervisor.memory import MemoryNeed, MemoryUsage, PeakMemory, memory_need, update_peak
from hostler.supervisor.process import ManagedProcess


class FileDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of a profile's file without running it."""

    facts: ModelFacts | None = None
    size: int = 0
    digest: str = ""
    modified_at: float = 0.0


class ManagedModel:
    """One of a fleet. Its fleet writes it; `run` is its process' task and ends with the member.

    `pinned` is what an operator said, else what the profile says.
    """

    process: ManagedProcess

    def __init__(self, profile: Profile, log: EngineLog) -> None:
        self.profile = profile
        self.log = log
        self.file: Path | None = None
        self.description = FileDescription()
        self.retired = False
        self.pinned = profile.pinned
        self.usage = MemoryUsage()
        self.phase_seconds: dict[str, float] = {}
        self.busy = False
        self._used_at = 0.0
        self._active: tuple[int, EngineActivity] | None = None
        self.recalled: PeakMemory | None = None
        self._seen: PeakMemory | None = None
        self._scope: anyio.CancelScope | None = None

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def need(self) -> MemoryNeed:
        """What it takes, or will take: declared, else estimated and corrected by what was seen."""
        return memory_need(self.profile, self.description.facts, self.seen)

    @property
    def seen(self) -> PeakMemory | None:
        """The most it was seen to take: since this supervisor runs once that says enough, until then also before."""
        own, before = self._seen, self.recalled
        if own is None or before is None or own.settled:
            return own or before
        return update_peak(before, MemoryUsage(rss=own.rss, gpu=own.gpu))

    @property
    def footprint(self) -> str:
        """What must be the same for the same amount to be expected."""
        parts = (engine_profile(self.profile), self.description.size, self.description.modified_at)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]

    @property
    def idle_since(self) -> float:
        """Since when, in seconds since the epoch, nobody is known to have used it."""
        return max(self._used_at, self.process.since)

    def used(self, now: float) -> None:
        """Somebody wants it."""
        self._used_at = now

    def active(self, activity: EngineActivity | None, now: float) -> None:
        """Its engine said that of itself; `None`: it does not say."""
        self.busy = activity is not None and activity.asked > 0
        if activity is None:
            return
        before, self._active = self._active, (self.process.generation, activity)
        first = before is None or before[0] != self.process.generation
        if self.busy or (activity.done > 0 if first else before != self._active):
            self._used_at = now

    def info(self, load_s: float | None) -> ProfileInfo:
        """The profile as others may know it; its next load will probably take `load_s`."""
        profile, description = self.profile, self.description
        return ProfileInfo(
            name=profile.name, aliases=profile.aliases, description=profile.description,
            context=profile.context, parallel=profile.parallel, size=description.size, digest=description.digest,
            modified_at=description.modified_at, facts=description.facts, ttl_s=profile.ttl_s, pinned=self.pinned,
            listed=profile.listed, default=profile.default, memory_bytes=self.need.total,
            load_s=load_s, chain=profile.chain, local_only=profile.local_only,
        )  # fmt: skip

    async def run(self) -> None:
        """Its process' task."""
        with anyio.CancelScope() as self._scope:
            await self.process.run()

    def leave(self) -> None:
        """End the task, now or when it starts."""
        self.retired = True
        if self._scope is not None:
            self._scope.cancel()

    def become(self, profile: Profile) -> None:
        """Take over a new profile of the same name."""
        if profile.model != self.profile.model:
            self.file = None
        if engine_profile(profile) != engine_profile(self.profile):
            self._seen = self.recalled = None
        self.profile = profile

    def measured(self, usage: MemoryUsage, *, settled: bool) -> None:
        """It takes this much now; `settled` if it has answered since it was started."""
        self.usage = usage
        self._seen = update_peak(self._seen, usage, settled=settled)


def engine_profile(profile: Profile) -> Profile:
    """The part of a profile that makes a command: two profiles that are equal in it can share a running engine."""
    return msgspec.structs.replace(
        profile, aliases=(), description="", ttl_s=None, start_timeout_s=None, stop_grace_s=None, drain_s=None, memory=None,
        pinned=False, listed=True, default=False, chain=None, local_only=False,
    )  # fmt: skip
