"""A profile of a host with its process, its output, and what is known of its file and its memory."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.contract import ProfileInfo
from hostler.supervisor.memory import Need, Observed, Usage, need, observe
from hostler.supervisor.output import Log
from hostler.supervisor.process import ManagedProcess


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of a profile's file without running it."""

    facts: ModelFacts | None = None
    size: int = 0
    digest: str = ""
    modified_at: float = 0.0


class Member:
    """One of a fleet. Its fleet writes it; `run` is its process' task and ends with the member.

    `pinned` is what an operator said, else what the profile says.
    """

    process: ManagedProcess

    def __init__(self, profile: Profile, log: Log) -> None:
        self.profile = profile
        self.log = log
        self.file: Path | None = None
        self.description = Description()
        self.retired = False
        self.pinned = profile.pinned
        self.usage = Usage()
        self.spent: dict[str, float] = {}
        self._seen: Observed | None = None
        self._scope: anyio.CancelScope | None = None

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def need(self) -> Need:
        """What it takes, or will take: declared, else estimated and corrected by what was seen."""
        return need(self.profile, self.description.facts, self._seen)

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
        if engine_of(profile) != engine_of(self.profile):
            self._seen = None
        self.profile = profile

    def measured(self, usage: Usage, *, settled: bool) -> None:
        """It takes this much now; `settled` if it has answered since it was started."""
        self.usage = usage
        self._seen = observe(self._seen, usage, settled=settled)


def engine_of(profile: Profile) -> Profile:
    """The part of a profile that makes a command: two profiles that are equal in it can share a running engine."""
    return msgspec.structs.replace(
        profile, aliases=(), description="", ttl_s=None, start_timeout_s=None, stop_grace_s=None, memory=None,
        pinned=False, listed=True, default=False, chain=None, local_only=False,
    )  # fmt: skip
