"""The contract between a host's scheduler and its engines: `Supervisor`, its values and its errors.

`EngineManager` fulfils it. Its values also reach gateways: see `lease_frames`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, Protocol, runtime_checkable

import msgspec

from hostler.profiles.engines import EngineProtocol, KeyHeader
from hostler.profiles.request_rules import RequestRules
from hostler.profiles.schema import ModelFacts, ProgressMode
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
    """Why a model is not available: a kind for programs, a message for users, and the engine's last log lines.

    For `retry_after_s` seconds the supervisor fails at once; with `None` the next request tries again.
    """

    kind: FailureKind
    message: str
    lines: tuple[str, ...] = ()
    exit_code: int | None = None
    retry_after_s: float | None = None


class SupervisorError(Exception):
    """The supervisor could not carry out the request; `failure` is the reason."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class UnknownProfile(Exception):
    """The host has no profile of that name."""


class SupervisorUnreachable(Exception):
    """The supervisor did not respond. Whether it carried out the request is unknown."""


class EngineAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a ready engine listens, and the key of that process. `generation` grows with every start.

    `protocol`, `prefix` (of its paths), `key_header` and `model_name` (its name of the model; empty for ours) say how it
    is spoken to. `key` is a secret: it must not reach logs, events or clients without the operate scope.
    """

    model: str
    host: str
    port: int
    key: str
    generation: int
    context: int
    parallel: int
    protocol: EngineProtocol = "llamacpp"
    prefix: str = ""
    key_header: KeyHeader = "bearer"
    model_name: str = ""


class AnswerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Time limits of a profile's answers, in seconds: as in `gateway.timeouts`, and for a whole answer. `None`: none of
    its own."""

    first_byte_s: float | None = None
    between_bytes_s: float | None = None
    max_answer_s: float | None = None


class PromptIdentity(msgspec.Struct, frozen=True, array_like=True):
    """What identifies the conversation that a request continues.

    `id` is the client's own name of it, empty if it gives none. `marks` are hashes of the prompt from its beginning up to
    some of its messages, each with the bytes until there, in ascending order: the first after the instructions.
    """

    id: str = ""
    marks: tuple[tuple[int, int], ...] = ()


class SlotAssignment(Protocol):
    """The slot of an engine that a request shall use. `prepared`: nothing has to be moved before."""

    slot: int
    prepared: bool

    async def prepare(self) -> None:
        """Save what is in the slot, and load what the request continues, as far as possible. Never raises."""
        ...

    def release(self) -> None:
        """The request has ended. Idempotent."""
        ...


class ProfileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A profile as published to gateways. `context` is what one request gets.

    `memory_bytes` is what its engine is expected to take, `device_bytes` how much of that on which device. `evict_cost` is
    in seconds, `None`: those of a load. `priority` is added to that of its requests. `max_concurrent` replaces `parallel`
    as the number of requests at a time. `metadata` is shown in OpenAI's list of models, `progress` overrides what waiting
    clients see. `embeddings`: it gives nothing else.
    """

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
    device_bytes: dict[str, int] = {}
    load_s: float | None = None
    evict_cost: float | None = None
    priority: int = 0
    max_concurrent: int | None = None
    max_waiting: int | None = None
    limits: AnswerLimits | None = None
    metadata: Mapping[str, Any] = {}
    progress: ProgressMode | None = None
    chain: tuple[str, ...] | None = None
    local_only: bool = False
    embeddings: bool = False
    request: RequestRules | None = None


#: The longest time that a model is leased for, in seconds, and why a longer one is refused.
LONGEST_LEASE_S: Final = 30 * 24 * 3600.0
LEASE_TOO_LONG: Final = "a model is leased for 30 days at most; lease it again later to extend that"


class ModelLease(msgspec.Struct, frozen=True, kw_only=True):
    """The right of `holder` to have `model` loaded until `expires_at`: it is not unloaded, and requests for models that
    would have to take its place are refused. Times in seconds since the epoch."""

    id: str
    model: str
    holder: str
    created_at: float
    expires_at: float


class FirstAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The first answer after a switch: of its `prompt` tokens `cached` were not read again."""

    prompt: int
    cached: int


class KeptConversations(msgspec.Struct, frozen=True, kw_only=True):
    """What a model keeps of its conversations over a switch. `reason`: why nothing, or not all of it; empty if it does.

    `slots` and `tokens` are what the running engine has restored; `first_answer` shows whether that was of use.
    """

    reason: str = ""
    slots: int = 0
    tokens: int = 0
    first_answer: FirstAnswer | None = None


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model's process. `since` is in seconds since the epoch; `percent` and `eta_s` are of the current load.

    `sleeping`: it is stopped, and its process still exists: it wakes faster than it starts.
    `phase_seconds` is the duration of each phase of the last switch to it. `conversations` is `None` until
    the model has been loaded, and on hosts that keep none.
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
    device_bytes: dict[str, int] = {}
    phase_seconds: dict[str, float] = {}
    conversations: KeptConversations | None = None
    failure: Failure | None = None
    sleeping: bool = False


DeviceVendor = Literal["nvidia", "amd", "intel", "apple"]


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU of a host. Sizes in bytes; `None` stands for what its driver does not report.

    `name` is `gpu0`, `gpu1` and so on; `vendor` is `None` for one that is configured and was not found. `other_bytes` is
    taken by programs that are no engines. Models may take `capacity_bytes` together, `None` if that is not limited; it
    is the configured `budget_bytes`, or what other programs leave if that is less. `unified`: it shares the machine's
    memory. `yielding`: other programs need memory, and idle models are unloaded for them. `driver`: with its version.
    """

    name: str
    vendor: DeviceVendor | None = None
    model: str = ""
    id: str = ""
    total_bytes: int | None = None
    used_bytes: int | None = None
    other_bytes: int = 0
    budget_bytes: int | None = None
    capacity_bytes: int | None = None
    utilization: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    unified: bool = False
    yielding: bool = False
    driver: str = ""


class EngineProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A llama-server of a host: its path, its build, the devices that it can use, and the options that it lacks."""

    path: str
    build: str = ""
    devices: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A host at one moment. `exclusive` allows one model at a time; else models share `budget_bytes` and `devices`.

    Of each of `groups` one model runs at a time. With `sets`, loaded models are always part of one of them. A host that
    is idle for `return_to_default_s` loads its default model again. `leases` are those of models, the first to expire first.

    `draining`: it takes no new requests, and unloads its models as soon as their answers have ended.

    `generation` differs after each restart of the supervisor, which counts the generations of processes anew. `programs`
    are the llama-servers that its profiles use.
    """

    profiles: tuple[ProfileInfo, ...] = ()
    models: tuple[ModelStatus, ...] = ()
    exclusive: bool = True
    budget_bytes: int | None = None
    devices: tuple[DeviceStatus, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    sets: tuple[tuple[str, ...], ...] = ()
    return_to_default_s: float | None = None
    leases: tuple[ModelLease, ...] = ()
    generation: int = 0
    programs: tuple[EngineProgram, ...] = ()
    draining: bool = False

    def with_model(self, status: ModelStatus) -> HostStatus:
        """The host after a change of one model."""
        others = (other for other in self.models if other.model != status.model)
        return msgspec.structs.replace(self, models=(*others, status))


#: In the order of a switch, which may skip some.
SwitchPhase = Literal[
    "fetching", "draining", "saving", "stopping", "starting", "loading", "restoring", "ready", "failed"
]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, tag="snapshot"):
    """The complete state: the first event of every subscription, sent again whenever profiles change."""

    host: HostStatus


class ModelChanged(msgspec.Struct, frozen=True, kw_only=True, tag="model"):
    """A model's process changed its state, or its load made progress."""

    status: ModelStatus


class SwitchMoved(msgspec.Struct, frozen=True, kw_only=True, tag="switch"):
    """A switch entered a phase or made progress. `elapsed_s` counts from its request; `phase_seconds` maps finished phases to
    seconds. `overdue`: loading takes longer than usual, and `percent` and `eta_s` are not known any more. After the first
    answer the last event of a switch is sent once more, with `first_answer`.
    """

    id: str
    model: str
    phase: SwitchPhase
    from_models: tuple[str, ...] = ()
    percent: float | None = None
    eta_s: float | None = None
    elapsed_s: float = 0.0
    phase_seconds: dict[str, float] = {}
    failure: Failure | None = None
    overdue: bool = False
    first_answer: FirstAnswer | None = None


class DevicesRead(msgspec.Struct, frozen=True, kw_only=True, tag="devices"):
    """New readings of all GPUs."""

    devices: tuple[DeviceStatus, ...]


SupervisorEvent = Snapshot | ModelChanged | SwitchMoved | DevicesRead


class Supervisor(Protocol):
    """Starts and stops engines, by profile name only.

    `switch` and `unload` are idempotent, and two switches to the same model join. Cancelling the caller does not cancel
    the work: the supervisor finishes what it began.
    """

    async def status(self) -> HostStatus:
        """The complete state. Raises `SupervisorUnreachable`."""
        ...

    async def switch(self, model: str, *, evict: Sequence[str] = ()) -> EngineAddress:
        """Make `model` ready and return where it listens.

        The models of `evict` are stopped first (the scheduler has drained them), then any others that the host's own
        policy demands, after they have finished their responses or `drain_s` has passed. By state: `ready` returns at
        once · `starting` joins · `stopping` waits, then starts · `stopped` and `backoff` start · `failed` fails at once
        until its backoff is over. Raises `UnknownProfile`, `SupervisorError`, `SupervisorUnreachable`.
        """
        ...

    async def unload(self, model: str) -> None:
        """Stop `model` and return when its whole process group is gone. Raises as `switch` does."""
        ...

    async def locate(self, model: str) -> EngineAddress | None:
        """Where `model` listens, if it is ready now. Raises `UnknownProfile`, `SupervisorUnreachable`."""
        ...

    async def active_requests(self, model: str, generation: int) -> int | None:
        """How many requests an engine works on: 0 once that process has ended, `None` if it does not report them."""
        ...

    async def report_first_response(self, model: str, *, generation: int, cached: int, prompt: int) -> None:
        """Report the first response of a generation: of its `prompt` tokens `cached` were not processed again.

        Shows whether restored slots were useful. Reports of older generations are ignored. Raises `UnknownProfile`,
        `SupervisorUnreachable`.
        """
        ...

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[SupervisorEvent]]:
        """Subscribe: first a `Snapshot`, then changes. A subscriber that is too slow gets a new `Snapshot` instead."""
        ...


@runtime_checkable
class SupportsPinning(Protocol):
    """A supervisor whose operators can pin models while it runs."""

    async def pin(self, model: str, pinned: bool) -> bool:
        """Pin or unpin `model`, whatever its profile says. Idempotent; starts and stops nothing.

        Subscribers get a `Snapshot`. Returns whether the choice survives a restart of the supervisor. Raises
        `UnknownProfile`, `SupervisorUnreachable`.
        """
        ...


@runtime_checkable
class SupportsDraining(Protocol):
    """A supervisor that can be taken out of service while it runs."""

    async def drain(self, draining: bool) -> bool:
        """Take the host out of service, or back into it. Idempotent; stops nothing by itself.

        Subscribers get a `Snapshot`. Returns whether that survives a restart of the supervisor. Raises
        `SupervisorUnreachable`.
        """
        ...


@runtime_checkable
class SupportsModelLeases(Protocol):
    """A supervisor that keeps models loaded for those who lease them."""

    async def add_lease(self, model: str, *, holder: str, seconds: float) -> ModelLease:
        """Lease `model` to `holder`, or extend the lease that it has, to `seconds` from now. Starts and stops nothing.

        Subscribers get a `Snapshot`. Raises `UnknownProfile`, `SupervisorError`, `SupervisorUnreachable`.
        """
        ...

    async def end_lease(self, lease_id: str) -> ModelLease | None:
        """End a lease; `None` if there is none of that id. Raises `SupervisorUnreachable`."""
        ...


@runtime_checkable
class SupportsPreparing(Protocol):
    """A supervisor that prepares the next load while other models finish their answers."""

    async def prepare_next(self, model: str | None, *, start: bool) -> None:
        """Fetch the file of `model` and read it ahead; with `start`, start its engine, if its memory is free. Returns
        when that is done, or at the next call, which replaces it; `None`: nothing is to be prepared any more.

        Raises `UnknownProfile`, and `SupervisorError` if the model cannot be loaded.
        """
        ...


@runtime_checkable
class SupportsSlots(Protocol):
    """A supervisor that knows which conversation is in which slot of its engines."""

    def assign_slot(self, model: str, generation: int, prompt: PromptIdentity) -> SlotAssignment | None:
        """A free slot for the request, if possible the one with its conversation; `None`: the engine shall choose."""
        ...


@runtime_checkable
class SupportsPulling(Protocol):
    """A supervisor that can download models' files before they are needed."""

    async def pull(self, model: str, *, report: Callable[[FetchProgress], None] = lambda _: None) -> None:
        """Download the file of `model` and verify it; `report` gets the progress. Starts no engine.

        Callers who want the same file share one download, which is cancelled when all of them are. Raises
        `UnknownProfile`, `SupervisorError`, `SupervisorUnreachable`.
        """
        ...
