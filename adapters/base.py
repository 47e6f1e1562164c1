"""The seam between the gateway and a protocol: what an adapter, its encoders and its upstream side promise.

An adapter does no I/O, has no clock and keeps no state between requests. Third-party adapters implement
`Adapter` and name their class under the entry-point group `hostler.adapters`; the built-in ones do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from hostler.adapters.errors import BackendRejected, GatewayError
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.types import Chunk, Progress, Request, ResponseHead
from hostler.profiles.presets import Preset


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One thing a client can ask: `name` is the adapter's word for it, `path` a Starlette path pattern.

    `header` claims the path only for requests that carry that header, `query` only for those with that parameter, so
    that two protocols can share a path.
    `scope` is what a key must allow: `infer`, `read` or `operate`. `probe` marks operations that are answered
    from the catalogue, which may be open without a key. `writes` marks those that change the gateway's state: they take
    JSON, and from programs, which no page can make ask, the types of `media`, too (an empty one: none is named).
    `upload` marks those whose body is a file, which nobody reads as a whole.
    """

    name: str
    path: str
    methods: tuple[str, ...] = ("POST",)
    header: str | None = None
    query: str | None = None
    scope: str = "infer"
    probe: bool = False
    writes: bool = False
    media: tuple[str, ...] = ()
    upload: bool = False


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it came: `path` percent-encoded as sent, `query` without the question mark, header names in lower case."""

    method: str
    path: str
    body: bytes = b""
    query: str = ""
    path_params: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}


class WireResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A complete answer. Its length is added by whoever writes it."""

    status: int = 200
    media_type: str = "application/json"
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class WireRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a backend: `path` starts with a slash and may carry a query; `body` is ready to send."""

    method: str = "POST"
    path: str
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Encoder(Protocol):
    """Turns one answer's chunks into the client's protocol. One per reply.

    Order of calls: `begin` once per attempt that is answered, then `chunk` for each chunk, then `end`. A client that
    asked for a whole answer gets it from `end` (the chunks folded), or piece by piece from `chunk` if the backend's
    own whole answer can be forwarded as it is. `media_type` and `length` are valid from the first non-empty result.
    """

    @property
    def streaming(self) -> bool:
        """Whether the client asked for an event stream (or lines), so that progress and in-band errors are possible."""
        ...

    @property
    def media_type(self) -> str: ...

    @property
    def length(self) -> int | None:
        """The length of the whole body, in bytes, if it is already known."""
        ...

    def begin(self, head: ResponseHead) -> None:
        """A backend answers: forget what an earlier attempt may have left half folded."""
        ...

    def chunk(self, chunk: Chunk) -> bytes: ...

    def end(self) -> bytes: ...

    def heartbeat(self, progress: Progress) -> bytes:
        """A sign of life that no client mistakes for an answer; empty if the protocol has none."""
        ...

    def error(self, error: GatewayError) -> bytes:
        """The error inside a stream that has begun, with whatever ends the stream visibly as failed."""
        ...


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How long an answer took, in seconds: waiting for its turn, switching models, and in all."""

    queue_s: float = 0.0
    switch_s: float = 0.0
    total_s: float = 0.0


@runtime_checkable
class Dated(Protocol):
    """What an encoder may promise besides: each of its lines says when it was written. `clock` is given to it at once, and
    tells seconds since the epoch."""

    def dated(self, clock: Callable[[], float]) -> None: ...


@runtime_checkable
class Timed(Protocol):
    """What an encoder may promise besides: its answers tell how long they took. `timing` is called once, before `end`."""

    def timing(self, timing: Timing) -> None: ...


@runtime_checkable
class Meeting(Protocol):
    """What an encoder may promise besides: its answers tell of the model that gives them."""

    def meet(self, card: ModelCard) -> None:
        """The model that was found for the request. Called once, before anything waits."""
        ...


@runtime_checkable
class Admitting(Protocol):
    """What an adapter may promise besides: it judges a request by the model that was found for it."""

    def admit(self, request: Request, card: ModelCard) -> Request:
        """The request, with what the protocol makes depend on the model filled in.

        Called once, when the model is known and before anything waits. Raises a `GatewayError` if the protocol
        demands a refusal (a model without tools, a request to think to one that cannot).
        """
        ...


@runtime_checkable
class Presetting(Protocol):
    """What an adapter may promise besides: its requests can be changed for a model that was made of another one."""

    def preset(self, request: Request, preset: Preset) -> Request:
        """The request with what the preset says wherever the client said nothing. Called before `admit`."""
        ...


@runtime_checkable
class Watchable(Protocol):
    """What an adapter may promise besides: some of its probes are answered with a stream of what changes."""

    def watches(self, request: Request) -> bool:
        """Whether the request asks for such a stream."""
        ...

    def news(self, before: ModelList | None, now: ModelList) -> bytes:
        """The events that lead from one snapshot to the next, or to the first one; empty if nothing tells of it."""
        ...


@runtime_checkable
class Amending(Protocol):
    """What an adapter may promise besides: it knows another way to say what a backend refused."""

    def amend(self, request: Request, rejected: BackendRejected) -> Request | None:
        """The request to send to the same backend instead, smaller each time; `None` to let the refusal stand."""
        ...


@runtime_checkable
class Welcoming(Protocol):
    """What an adapter may promise besides: some web pages may call its routes although no setting names them."""

    def welcomes(self, origin: str) -> bool:
        """Whether pages of this origin may, as the header `Origin` names it."""
        ...


class Parser(Protocol):
    """Reads one backend's answer, segment by segment, however it was cut."""

    def begin(self, head: ResponseHead) -> None: ...

    def feed(self, data: bytes) -> Iterable[Chunk]:
        """The chunks that these bytes complete. Raises `BackendBroken` for an error inside the stream."""
        ...

    def finish(self) -> Iterable[Chunk]:
        """The connection ended. Raises `BackendBroken` unless the answer was complete."""
        ...


class Upstream(Protocol):
    """A protocol as backends speak it."""

    @property
    def wire(self) -> str: ...

    def build(self, request: Request, *, model: str, stream: bool) -> WireRequest:
        """The request for a backend that calls the model `model`; `stream` asks for a stream even for a whole answer."""
        ...

    def parser(self, request: Request, *, fields: bool) -> Parser:
        """A reader for the answer; `fields` asks for decoded fields beside the raw bytes."""
        ...


@runtime_checkable
class Polyglot(Protocol):
    """What an upstream may promise besides: it speaks more protocols than the one it is named after."""

    def speaks(self, wire: str) -> bool:
        """Whether a request of this protocol is sent on as it is, without being expanded."""
        ...


class Adapter(Protocol):
    """A protocol as clients speak it."""

    @property
    def name(self) -> str: ...

    @property
    def operations(self) -> Sequence[Operation]: ...

    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The canonical request. Raises a `GatewayError` that says what is wrong with the bytes."""
        ...

    def expand(self, request: Request) -> Request:
        """The same request with everything decoded that a backend of another protocol needs."""
        ...

    def answer(self, request: Request, listing: ModelList) -> WireResponse:
        """The answer to a probe, from the catalogue alone. Raises `ModelNotFound` for a model it does not hold."""
        ...

    def encoder(self, request: Request, *, id: str, created: int, progress: str) -> Encoder:  # noqa: A002
        """An encoder for one reply; `id` and `created` (seconds) are for answers that need them made up.

        `progress` is the setting: `thinking`, `quiet`, `comments` or `off`.
        """
        ...

    def refuse(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        """The error as a complete answer of this protocol, with the right status."""
        ...
