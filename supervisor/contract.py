"""All that the gateway knows of a supervisor: values, and the promises of `Supervisor`.

In one process the gateway holds the `Fleet` itself; over a network `client.py` keeps the same promises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, runtime_checkable

import msgspec

from hostler.profiles.schema import ModelFacts
from hostler.profiles.sources import FetchProgress

State = Literal["stopped", "starting", "ready", "stopping", "backoff", "failed"]

FailureKind = Literal[
    "file_missing",
    "not_gguf",
    "model_damaged",
    "unknown_architecture",
    "port_taken",
    "out_of_memory",
    "engine_missing",
    "bad_argument",
    "killed",
    "exited",
    "start_timeout",
    "unresponsive",
    "does_not_fit",
    "source_unavailable",
    "cancelled",
]


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a model could not be had: a typed reason, one sentence for people, and the engine's last lines.

    `retry_after_s` is how long the supervisor will fail fast; `None` means that the next request tries again.
    """

    kind: FailureKind
    message: str
    lines: tuple[str, ...] = ()
    exit_code: int | None = None
    retry_after_s: float | None = None


class SupervisorError(Exception):
    """A supervisor could not do what was asked; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class UnknownProfile(Exception):
    """No profile of that name on this host."""


class StaleEpoch(Exception):
    """An order carried an epoch lower than one already seen: another gateway has taken over."""


class SupervisorUnreachable(Exception):
    """The supervisor did not answer; nothing is known about what it did."""


class EngineAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a ready engine listens and the key of that very process. `generation` grows with every start.

    `key` must not reach logs, events or people without the operate scope.
    """

    model: str
    host: str
    port: int
    key: str
    generation: int
    context: int
    parallel: int


class ProfileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A profile as the gateway needs to know it. `context` is per request: what one slot really gets."""

    name: str
    aliases: tuple[str, ...] = ()
    description: str = ""
    context: int = 0
    parallel: int = 1
    size: int = 0
    digest: str = ""
    modified_at: float = 0.0
    facts: ModelFacts | None = None
    ttl_s: float | None = None
    pinned: bool = False
    listed: bool = True
    default: bool = False
    memory_bytes: int = 0
    load_s: float | None = None
    chain: tuple[str, ...] | None = None
    local_only: bool = False


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model's process. `since` is in seconds since the epoch, `percent` is of the load under way.

    `phase_seconds` is where the time of the last switch to it went, in seconds by phase.
    """

    model: str
    state: State
    since: float
    generation: int = 0
    pid: int | None = None
    percent: float | None = None
    eta_s: float | None = None
    memory_bytes: int = 0
    gpu_bytes: int = 0
    phase_seconds: dict[str, float] = {}
    failure: Failure | None = None


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A host at one moment. `exclusive` allows one model at a time; else models share `budget_bytes`.

    `epoch` is the highest that an order carried. It never gets lower: a supervisor that gateways reach over HTTP remembers
    it over its own restarts. (Generations of processes do start anew then.)
    """

    profiles: tuple[ProfileInfo, ...] = ()
    models: tuple[ModelStatus, ...] = ()
    exclusive: bool = True
    budget_bytes: int | None = None
    epoch: int = 0


#: In the order that a switch goes through them, some left out.
SwitchPhase = Literal[
    "fetching", "draining", "saving", "stopping", "starting", "loading", "restoring", "ready", "failed"
]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, tag="snapshot"):
    """The first event of every subscription, and again whenever profiles changed: everything, at once."""

    host: HostStatus


class ModelChanged(msgspec.Struct, frozen=True, kw_only=True, tag="model"):
    """A model's process changed its state, or its load moved on."""

    status: ModelStatus


class SwitchMoved(msgspec.Struct, frozen=True, kw_only=True, tag="switch"):
    """A switch entered a phase. `elapsed_s` counts from the order; `phase_seconds` maps finished phases to seconds."""

    id: str
    model: str
    phase: SwitchPhase
    from_models: tuple[str, ...] = ()
    percent: float | None = None
    eta_s: float | None = None
    elapsed_s: float = 0.0
    phase_seconds: dict[str, float] = {}
    failure: Failure | None = None


SupervisorEvent = Snapshot | ModelChanged | SwitchMoved


class Supervisor(Protocol):
    """Starts and stops engines, by profile name only.

    `switch` and `unload` are idempotent; two orders for the same model join. Cancelling the caller leaves the
    order running: the supervisor finishes what it began.
    """

    async def status(self) -> HostStatus:
        """Everything, now. Raises `SupervisorUnreachable`."""
        ...

    async def switch(self, model: str, *, evict: Sequence[str] = (), epoch: int | None = None) -> EngineAddress:
        """Make `model` ready and say where it listens.

        The models of `evict` are stopped first (the gateway has drained them), and any others that the host's own
        rule demands, once they have finished their answers or the host's patience is over. State by state: `ready` answers at once · `starting` joins · `stopping` waits, then starts ·
        `stopped` and `backoff` start · `failed` fails fast until its cool-down is over. Raises `UnknownProfile`,
        `SupervisorError` with the reason, `StaleEpoch`, `SupervisorUnreachable`.
        """
        ...

    async def unload(self, model: str, *, epoch: int | None = None) -> None:
        """Stop `model` and return when its whole process group is gone. Raises as `switch` does."""
        ...

    async def locate(self, model: str) -> EngineAddress | None:
        """Where `model` listens, if it is ready now."""
        ...

    async def answered(self, model: str, *, generation: int, cached: int, prompt: int) -> None:
        """The first answer of that generation has ended: `cached` of its `prompt` tokens need not be read.

        Tells whether a conversation that was given back after the start was of any use. An older generation is
        ignored. Raises `UnknownProfile`, `SupervisorUnreachable`.
        """
        ...

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[SupervisorEvent]]:
        """A subscription: first a `Snapshot`, then changes. Bounded: a slow listener gets a new `Snapshot` instead."""
        ...


@runtime_checkable
class SupportsPinning(Protocol):
    """What a supervisor may promise besides: operators say which models stay loaded, while it runs."""

    async def pin(self, model: str, pinned: bool, *, epoch: int | None = None) -> bool:
        """From now on `model` is pinned, or is not, whatever its profile says. Idempotent; starts and stops nothing.

        Whoever is subscribed is told by a `Snapshot`. `True` if this will be remembered over a restart of the
        supervisor. Raises `UnknownProfile`, `StaleEpoch`, `SupervisorUnreachable`.
        """
        ...


@runtime_checkable
class SupportsPulling(Protocol):
    """What a supervisor may promise besides: it has models' files come before anybody needs them."""

    async def pull(self, model: str, *, report: Callable[[FetchProgress], None] = lambda _: None) -> None:
        """Have the file of `model` on that host, whole and checked; `report` hears how far it is.

        Everybody who asks for the same file waits for the same download; it ends early when all of them have left.
        Starts no engine. Raises `UnknownProfile`, `SupervisorError` with the reason, `SupervisorUnreachable`.
        """
        ...
