"""The context of one request: the request, its attempts and how they ended.

Owned by the request's task. Middleware find it in the ASGI scope, and communicate through it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from hostler.adapters.base import Adapter, Operation
from hostler.adapters.canonical import Progress, PromptStatus, Request, Usage
from hostler.adapters.errors import GatewayError
from hostler.gateway.asgi import CONTEXT_KEY, AcceptUpgrade
from hostler.profiles.request_rules import RequestRules
from hostler.supervisor.contract import AnswerLimits, EngineAddress, PromptIdentity
from hostler.supervisor.scheduling.lease import Lease

if TYPE_CHECKING:
    from hostler.gateway.response import ResponseWriter

RequestOutcome = Literal["ok", "failed", "broken", "client_disconnected", "cancelled"]
KeyScope = Literal["infer", "read", "operate"]
#: The error for waiting requests when the gateway stops, and for new ones that would have to wait.
SHUTTING_DOWN = "the gateway is shutting down and accepts no new work; try again in a moment"
#: The error for requests whose answers are cut off at the end of the drain time.
DRAIN_EXPIRED = "the gateway is shutting down and could not wait longer for this answer; try again in a moment"

ALL_SCOPES: frozenset[KeyScope] = frozenset({"infer", "read", "operate"})

_NEVER = float("inf")


#: The largest count that every part of a cluster can add exactly.
MAX_COUNT = 2**53
_Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT)]


class KeyRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a key may use: models and backends by patterns in which `*` stands for anything (none: all), and how much."""

    models: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    tokens_per_day: _Count | None = None
    dollars_per_day: Annotated[float, msgspec.Meta(ge=0)] | None = None

    def allows_model(self, name: str) -> bool:
        """Whether the key may use the model of this name, in any case."""
        return not self.models or any(fnmatchcase(name.lower(), pattern.lower()) for pattern in self.models)

    def allows_backend(self, name: str) -> bool:
        """Whether the key's requests may go to the backend of this name."""
        return not self.backends or any(fnmatchcase(name, pattern) for pattern in self.backends)

    @property
    def counts(self) -> bool:
        """Whether there is anything to count."""
        limits = self.requests_per_minute, self.tokens_per_minute, self.tokens_per_day, self.dollars_per_day
        return any(limit is not None for limit in limits)


_NO_HEADERS: Mapping[str, str] = {}


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """The client: `name` is that of its key, else its address; `scopes` is what the key allows. `identity` distinguishes a key
    from an earlier one of the same name.

    `local_only`: its requests are served by local backends only. `priority`: waiting requests with a higher one are
    served first. `rules` is `None` where the key has none, and `expires` whether it ends at some time.
    """

    name: str
    identity: str = ""
    scopes: frozenset[KeyScope] = ALL_SCOPES
    local_only: bool = False
    priority: int = 0
    rules: KeyRules | None = None
    expires: bool = False

    @property
    def owner(self) -> str:
        """Whose things the client may see: those of its key; empty without keys, where it may come back with another address."""
        return f"{self.name} {self.identity}" if self.identity else ""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A model at a backend: `model` is the gateway's name of it, `name_there` the backend's.

    `context` is how many tokens a request may have there, 0 if unknown. `needs_load`: the model is not loaded. `lacks` is
    what it certainly cannot do, under the names of `adapters/needs.py`. `limits` are the time limits of its profile, if
    it has any of its own, `request` the operator's changes of requests.
    """

    backend: str
    model: str
    name_there: str
    context: int = 0
    needs_load: bool = False
    lacks: frozenset[str] = frozenset()
    limits: AnswerLimits | None = None
    request: tuple[RequestRules, ...] = ()


class Attempt(msgspec.Struct, kw_only=True, eq=False):
    """One try at one target; `hop` is the target's index among the candidates. Times in seconds, moments by the loop's
    clock.

    `lease` is the place in the host's queue, then the right to use its model, and `address` where the engine listens
    once it is granted; backends without a supervisor have neither. `sent`: the backend may have the request.
    `sent_at` is when a stream was requested from the backend, `prompt` what it reported at `prompt_at` about reading
    the prompt. `segments` counts the pieces received from it. `on_first_token` is called when the first token
    arrives. `restarts` is how often a dead engine was started afresh. `queue_s` and `switch_s` are the parts of
    `seconds` spent waiting in the queue and for a switch. `cost` is in US dollars, `None` if unknown. `outcome` is
    empty until the attempt has ended, then `answered`, the kind of failure, `moved` to another host while it was queued, or
    what ended it from outside (`client_disconnected`, `cancelled`, `stopped`).
    """

    target: Target
    hop: int = 0
    started_at: float = 0.0
    lease: Lease | None = None
    address: EngineAddress | None = None
    sent: bool = False
    sent_at: float = 0.0
    prompt: PromptStatus | None = None
    prompt_at: float = 0.0
    segments: int = 0
    first_token_at: float | None = None
    on_first_token: Callable[[], None] | None = None
    usage: Usage | None = None
    finish: str | None = None
    restarts: int = 0
    queue_s: float = 0.0
    switch_s: float = 0.0
    cost: float | None = None
    seconds: float = 0.0
    outcome: str = ""

    @property
    def is_charged(self) -> bool:
        """Whether the backend charges for the attempt, which has ended: it answered, or may have read the prompt when the
        request was cut off from outside."""
        if self.outcome == "answered" or self.first_token_at is not None:
            return True
        return self.sent and self.outcome in ("client_disconnected", "cancelled", "stopped")


class RequestContext:
    """A request, its state so far, and its response writer. Moments are by the loop's clock, in seconds.

    `requested_model` is the name as the client sent it, `model` the one it stands for. `local_only`: only local backends
    may answer. `only` names the one backend that may answer. `attempt` is the current try, or the last one; `attempts` are
    all of them. `failed_hops` are the backends before the current one, each with the reason why it did not answer.
    `client_port` is that of the client's connection, 0 if unknown, `headers` are the client's, with names in lower case.
    `deadline` is when waiting ends, one for all attempts. `waits_for(context)` is what a streaming client waits for until
    its first token, `hasten` shows it at once since it is new; before `signs_from`, no sign of life is sent, so that an
    early error keeps its own status. `cancel_reason` says why the request was cancelled; without one it was cut off when
    the gateway stopped. `limit_headers` describe the limits of the client's key. `accept_upgrade` is set for a request that
    asks for WebSocket. `background`: it is served while its host has nothing else to do, without a deadline. `prompt`
    identifies its conversation once that was looked for. `alternatives` are the candidates that could answer instead of the
    current one, `granted` is a lease that one of them granted before its attempt began.
    """

    __slots__ = (
        "accept_upgrade",
        "adapter",
        "alternatives",
        "attempt",
        "attempts",
        "background",
        "cancel_reason",
        "candidates",
        "client",
        "client_port",
        "deadline",
        "failed_hops",
        "granted",
        "hasten",
        "headers",
        "id",
        "limit_headers",
        "local_only",
        "model",
        "only",
        "operation",
        "outcome",
        "prompt",
        "reason",
        "request",
        "requested_model",
        "signs_from",
        "started_at",
        "waits_for",
        "writer",
    )

    def __init__(
        self,
        *,
        request_id: str,
        adapter: Adapter,
        operation: Operation,
        request: Request,
        writer: ResponseWriter,
        client: Client,
        started_at: float,
        local_only: bool = False,
        only: str | None = None,
        client_port: int = 0,
        headers: Mapping[str, str] = _NO_HEADERS,
        accept_upgrade: AcceptUpgrade | None = None,
        background: bool = False,
    ) -> None:
        self.id = request_id
        self.adapter = adapter
        self.operation = operation
        self.request = request
        self.writer = writer
        self.client = client
        self.client_port = client_port
        self.started_at = started_at
        self.local_only = local_only
        self.only = only
        self.headers = headers
        self.accept_upgrade = accept_upgrade
        self.background = background
        self.requested_model: str | None = request.model
        self.model: str | None = None
        self.candidates: tuple[Target, ...] = ()
        self.alternatives: tuple[Target, ...] = ()
        self.granted: Lease | None = None
        self.prompt: PromptIdentity | None = None
        self.attempt: Attempt | None = None
        self.attempts: list[Attempt] = []
        self.failed_hops: tuple[tuple[str, str], ...] = ()
        self.reason = ""
        self.limit_headers: tuple[tuple[bytes, bytes], ...] = ()
        self.deadline: float | None = None
        self.waits_for: Callable[[RequestContext], Progress] | None = None
        self.hasten: Callable[[], None] = nothing_shown
        self.signs_from = _NEVER
        self.cancel_reason: GatewayError | None = None
        self.outcome: RequestOutcome = "failed"

    @staticmethod
    def of(scope: Any) -> RequestContext:
        """The context of the request with this ASGI scope."""
        context: RequestContext = scope[CONTEXT_KEY]
        return context

    def begin_attempt(self, target: Target, *, hop: int, now: float) -> Attempt:
        """Make a new try at `target` the current one."""
        attempt = self.attempt = Attempt(target=target, hop=hop, started_at=now)
        self.attempts.append(attempt)
        return attempt

    @property
    def current(self) -> Attempt:
        """The current attempt, for code that only runs within one."""
        assert self.attempt is not None, "called outside of an attempt"
        return self.attempt

    @property
    def shown_model(self) -> str | None:
        """The model in messages: as sent where `model` is a pattern, whose star stands for many names."""
        return self.requested_model if self.model is not None and "*" in self.model else self.model

    def may_use(self, backend: str) -> bool:
        """Whether the request is sent to this backend, or may still be."""
        if self.attempt is not None and self.attempt.target.backend == backend:
            return True
        return not self.writer.committed and any(target.backend == backend for target in self.candidates)

    @property
    def target(self) -> Target | None:
        """The target of the current attempt."""
        return None if self.attempt is None else self.attempt.target

    @property
    def hop(self) -> int:
        """The index of the current target among the candidates, 0 before the first attempt."""
        return 0 if self.attempt is None else self.attempt.hop

    @property
    def waits(self) -> tuple[float, float]:
        """Seconds spent in queues, and for switches, over all attempts."""
        attempts = self.attempts
        if len(attempts) == 1:  # nearly always; saves a microsecond
            return attempts[0].queue_s, attempts[0].switch_s
        return sum(attempt.queue_s for attempt in attempts), sum(attempt.switch_s for attempt in attempts)

    @property
    def cost(self) -> float | None:
        """US dollars over all attempts, as far as they are known; `None` if none is."""
        cost: float | None = None
        for attempt in self.attempts:
            if attempt.cost is not None:
                cost = attempt.cost + (cost or 0.0)
        return cost


def nothing_shown() -> None:
    """Nothing is shown yet, so there is nothing to hasten."""
