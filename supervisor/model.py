"""One model of a host: its profile, its process, whether it is pinned, idle or busy, and what its engine takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from hostler.profiles.capabilities import with_arguments
from hostler.profiles.schema import Profile
from hostler.supervisor.contract import AnswerLimits, ModelStatus, ProfileInfo
from hostler.supervisor.engine_client import EngineActivity
from hostler.supervisor.engine_lifecycle import EngineLifecycle
from hostler.supervisor.engine_process import ManagedProcess
from hostler.supervisor.logs import EngineLog
from hostler.supervisor.memory import MemoryUsage
from hostler.supervisor.process_limits import ProcessLimits

#: For how long a model that no engine could load is reported as failed, unless that is repeated, in seconds.
FAILED_S: Final = 15.0


class ManagedModel:
    """A model of an `EngineManager`, which writes its public attributes.

    `pinned` is the operator's choice, else the profile's; `leased` models are kept loaded as well. `phase_seconds` is the
    duration of each phase of the last switch to it.
    """

    def __init__(
        self, lifecycle: EngineLifecycle, log: EngineLog, limits: ProcessLimits, *, host: str,
        ports: range | None, on_change: Callable[[ManagedProcess], None],
        expected_load_s: Callable[[], float | None] = lambda: None,
    ) -> None:  # fmt: skip
        self.lifecycle = lifecycle
        self.log = log
        self.process = ManagedProcess(self.name, lifecycle, limits, log, host=host, ports=ports, on_change=on_change)
        self.retired = False
        self.pinned = lifecycle.profile.pinned
        self.leased = False
        self.usage = MemoryUsage()
        self.phase_seconds: dict[str, float] = {}
        self._expected_load_s = expected_load_s
        self.busy = False
        self._last_used = 0.0
        self._activity: tuple[int, EngineActivity] | None = None
        self._scope: anyio.CancelScope | None = None

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def profile(self) -> Profile:
        return self.lifecycle.profile

    @property
    def idle_since(self) -> float:
        """When it was last used or changed its state, in seconds since the epoch."""
        return max(self._last_used, self.process.since)

    @property
    def load_s(self) -> float | None:
        """The expected duration of its next load, if one was measured."""
        return self._expected_load_s()

    @property
    def evict_cost(self) -> float:
        """The cost of unloading it, in seconds: the profile's, else the duration of a load."""
        return (self.load_s or 0.0) if self.profile.evict_cost is None else self.profile.evict_cost

    @property
    def kept(self) -> bool:
        """Whether it is kept loaded without requests."""
        return self.pinned or self.leased

    def mark_used(self, now: float) -> None:
        """Record that a request needs it now."""
        self._last_used = now

    def update_activity(self, activity: EngineActivity | None, now: float) -> None:
        """Apply what its engine reported; `None` if it reports nothing."""
        self.busy = activity is not None and activity.requests > 0
        if activity is None:
            return
        before, self._activity = self._activity, (self.process.generation, activity)
        first = before is None or before[0] != self.process.generation
        if self.busy or (activity.work_done > 0 if first else before != self._activity):
            self._last_used = now

    def info(self) -> ProfileInfo:
        """The profile as published."""
        profile, description = self.profile, self.lifecycle.description
        return ProfileInfo(
            name=profile.name, aliases=profile.aliases, description=profile.description,
            context=profile.context, parallel=profile.parallel, size=description.size, digest=description.digest,
            modified_at=description.modified_at, facts=with_arguments(description.facts, profile),
            ttl_s=profile.ttl_s, pinned=self.pinned,
            listed=profile.listed, default=profile.default, memory_bytes=self.lifecycle.memory_need.total,
            device_bytes=self.lifecycle.device_needs, load_s=self.load_s, evict_cost=profile.evict_cost, priority=profile.priority,
            max_concurrent=profile.max_concurrent, max_waiting=profile.max_waiting, limits=_limits(profile),
            metadata=profile.metadata, progress=profile.progress, chain=profile.chain, local_only=profile.local_only, embeddings=profile.embeddings,
            request=profile.request,
        )  # fmt: skip

    def status(self, *, percent: float | None, eta_s: float | None) -> ModelStatus:
        """The model as published, with the progress of a switch to it."""
        process, disabled = self.process, self.lifecycle.disabled
        if process.state == "stopped" and disabled is not None:
            failure = msgspec.structs.replace(disabled, retry_after_s=FAILED_S)
            return ModelStatus(
                model=self.name, state="failed", since=process.since, generation=process.generation, failure=failure
            )
        return ModelStatus(
            model=self.name, state=process.state, since=process.since, generation=process.generation,
            pid=process.pid, percent=percent, eta_s=eta_s, memory_bytes=self.usage.rss, gpu_bytes=self.usage.gpu,
            device_bytes=dict(self.usage.devices), phase_seconds=self.phase_seconds,
            conversations=self.lifecycle.conversations, failure=process.failure,
            sleeping=process.state == "stopped" and process.asleep,
        )  # fmt: skip

    async def run(self) -> None:
        """Run its process until `retire` or cancellation."""
        with anyio.CancelScope() as self._scope:
            await self.process.run()

    def retire(self) -> None:
        """End `run`, now or when it starts."""
        self.retired = True
        if self._scope is not None:
            self._scope.cancel()


def _limits(profile: Profile) -> AnswerLimits | None:
    limits = AnswerLimits(
        first_byte_s=profile.first_byte_s, between_bytes_s=profile.between_bytes_s, max_answer_s=profile.max_answer_s
    )
    return limits if limits != AnswerLimits() else None
