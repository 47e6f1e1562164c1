"""One request on its way: owned by its task, changed only by it, found by the layers through the ASGI scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from hostler.adapters.base import Adapter, Operation
from hostler.adapters.errors import GatewayError
from hostler.adapters.types import Request, Usage
from hostler.gateway.asgi import CONTEXT_KEY
from hostler.supervisor.contract import EngineAddress

if TYPE_CHECKING:
    from hostler.gateway.response import ResponseWriter

RequestOutcome = Literal["ok", "failed", "broken", "left", "cancelled"]
KeyScope = Literal["infer", "read", "operate"]
#: What those are told who still wait when the gateway stops, and whoever would have to.
NO_MORE = "the gateway stops, and begins nothing new; ask again in a moment"
#: What those are told whose answers are cut off by its end.
CUT_OFF = "the gateway stops, and has waited for this answer as long as it may; ask again in a moment"

ALL_SCOPES: frozenset[KeyScope] = frozenset({"infer", "read", "operate"})


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks: the name of the key, else the address. `scopes` is what the key allows.

    `local_only`: what this client asks never leaves the house. `priority`: of those who wait, the higher is served
    first.
    """

    name: str
    scopes: frozenset[KeyScope] = ALL_SCOPES
    local_only: bool = False
    priority: int = 0


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A backend, and what it calls the model there. `model` is the gateway's own name of it.

    `context` is how many tokens a request may have there, 0 if that is not known.
    """

    backend: str
    model: str
    name_there: str
    context: int = 0


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try at one target, and what became of it: `answered`, the kind of failure, or what ended it from outside
    (`client_left`, `cancelled`, `stopped`).

    `began_at` is of the loop's clock; `queue_s` and `switch_s` are the parts of it that were spent waiting.
    """

    target: Target
    seconds: float
    outcome: str = "answered"
    began_at: float = 0.0
    queue_s: float = 0.0
    switch_s: float = 0.0


class RequestContext:
    """A request, what is known of it so far, and the one way to answer it. Times are of the loop's clock, in seconds.

    `local_only`: it must not leave the house. `only` names the one backend that may answer it. `answering` is called
    with each attempt's first word, `heard` grows with whatever a backend says. `passed` are the backends before the one
    that is asked, each with why it did not answer. `cost` is what its attempts cost in US dollars, as far as backends tell.
    `ending` says why the edge cancelled it; what is cancelled without one is cut off by the end of the gateway.
    """

    __slots__ = (
        "adapter",
        "address",
        "answering",
        "asked",
        "attempts",
        "candidates",
        "client",
        "cost",
        "deadline",
        "ending",
        "finish",
        "first_word_at",
        "heard",
        "hop",
        "id",
        "local_only",
        "model",
        "only",
        "operation",
        "outcome",
        "passed",
        "queue_s",
        "reason",
        "request",
        "started_at",
        "switch_s",
        "target",
        "usage",
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
    ) -> None:
        self.id = request_id
        self.adapter = adapter
        self.operation = operation
        self.request = request
        self.writer = writer
        self.client = client
        self.started_at = started_at
        self.local_only = local_only
        self.only = only
        self.asked: str | None = request.model
        self.model: str | None = None
        self.candidates: tuple[Target, ...] = ()
        self.target: Target | None = None
        self.address: EngineAddress | None = None
        self.attempts: list[Attempt] = []
        self.passed: tuple[tuple[str, str], ...] = ()
        self.hop = 0
        self.reason = ""
        self.deadline: float | None = None
        self.ending: GatewayError | None = None
        self.queue_s = 0.0
        self.switch_s = 0.0
        self.first_word_at: float | None = None
        self.heard = 0
        self.usage: Usage | None = None
        self.finish: str | None = None
        self.outcome: RequestOutcome = "failed"
        self.answering: Callable[[], None] | None = None
        self.cost: float | None = None

    @staticmethod
    def of(scope: Any) -> RequestContext:
        """The exchange that the edge put into this scope."""
        context: RequestContext = scope[CONTEXT_KEY]
        return context
