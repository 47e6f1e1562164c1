"""The seam between the gateway and a protocol: base classes of adapters, their encoders, upstreams and parsers.

None of them does I/O, reads a clock or keeps state between requests. A third-party adapter derives from `Adapter` and
`Encoder`, overrides what its protocol needs and names its class under the entry-point group `hostler.adapters`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from hostler.adapters.canonical import (
    Chunk,
    Download,
    FindDownloads,
    ModelInfoRequest,
    Origin,
    Progress,
    PromptStatus,
    Request,
    ResponseHead,
    StartDownload,
    StoredRequest,
)
from hostler.adapters.errors import BackendRejected, GatewayError, NotFound
from hostler.adapters.json_body import JsonBody
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.rate_limits import RateLimit, openai_headers
from hostler.adapters.remote_models import Discovery, ListUnavailable, RemoteModel
from hostler.adapters.stored_response import StoredResponse, StoredResponses, StreamInfo
from hostler.profiles.presets import Preset


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One route of a protocol: `name` is the adapter's name for it, `path` a Starlette path pattern.

    `header` matches only requests that carry that header, `query` only those with that parameter, so that two protocols
    can share a path. `scope` is what a key must allow: `infer`, `read` or `operate`. `model_info` marks operations that
    are answered from the catalogue, which may be open without a key. `writes` marks those that change the gateway's
    state: they accept JSON and, from clients that are not web pages, the media types in `media_types` (an empty one: no
    Content-Type). `stores` marks those that use stored responses, `resumes` those about streams that outlive their
    connection. `upload` marks those whose body is a file, which is never held in memory.
    """

    name: str
    path: str
    methods: tuple[str, ...] = ("POST",)
    header: str | None = None
    query: str | None = None
    scope: str = "infer"
    model_info: bool = False
    writes: bool = False
    media_types: tuple[str, ...] = ()
    upload: bool = False
    stores: bool = False
    resumes: bool = False


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """A client's request: `path` percent-encoded as sent, `query` without question mark, header names in lower case."""

    method: str
    path: str
    body: bytes = b""
    query: str = ""
    path_params: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}


class WireResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A complete response. `Content-Length` is added when it is sent."""

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


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How long a response took, in seconds: in the queue, switching models, and in total."""

    queue_s: float = 0.0
    switch_s: float = 0.0
    total_s: float = 0.0


class Encoder(ABC):
    """Writes one response in the client's protocol.

    Order of calls: `set_clock`, `set_progress`, `bind_model`, then `start` for each attempt that a backend answers,
    `encode` for each chunk, `set_timing`, `finish`. A client that asked for a whole response gets it from `finish`,
    folded from the chunks, or piece by piece from `encode` if the backend's own whole response can be forwarded.

    `streaming`: the client asked for a stream, so that heartbeats and in-band errors are possible. `media_type`, and
    `length` in bytes where the length of the body is known, are valid from the first non-empty result; so is `status`, a
    backend's own one (201, 204) where its response is forwarded.
    """

    streaming: bool = False
    status: int = 200
    media_type: str = "application/json"
    length: int | None = None
    #: For protocols that store responses: receives the whole response, just before its last bytes are sent.
    on_response: Callable[[bytes], None] | None = None

    def set_clock(self, clock: Callable[[], float]) -> None:
        """For protocols that put a time into each line: `clock` returns seconds since the epoch."""
        return

    def set_progress(self, progress: str) -> None:
        """For protocols that show progress: the model's own setting, as in `Adapter.encoder`. Called at most once, before
        `bind_model`."""
        return

    def bind_model(self, card: ModelCard) -> None:
        """For protocols whose responses describe their model. Called once, before the request waits for anything."""
        return

    def set_timing(self, timing: Timing) -> None:
        """For protocols whose responses say how long they took. Called once, before `finish`."""
        return

    def start(self, head: ResponseHead) -> None:
        """A backend answers. Discards what an earlier attempt may have left half folded."""
        return

    @abstractmethod
    def encode(self, chunk: Chunk) -> bytes:
        """The bytes to send for this chunk; empty while a whole response is being folded."""

    def finish(self) -> bytes:
        """The end of the stream, or the folded response."""
        return b""

    def heartbeat(self, progress: Progress) -> bytes:
        """A sign of life that no client mistakes for a response; empty if the protocol has none."""
        return b""

    def error(self, error: GatewayError) -> bytes:
        """The error inside a stream that has begun, with whatever marks the stream as failed."""
        return b""


_MEDIA = ("audio/", "image/", "video/", "application/octet-stream")


def is_media(media_type: str) -> bool:
    """Whether an answer of this type is sound, a picture or any other file: nothing that can be an error."""
    return media_type.lower().startswith(_MEDIA)


class Parser(ABC):
    """Reads one backend's response, segment by segment, wherever the segments are cut.

    `prompt` is what the backend last reported about reading the prompt. `is_silent`: what was fed last says nothing, as
    keep-alives do, although it may have to be forwarded. `holds_back`: a body may turn out to be an error at its end, so
    that none of it is passed on before; not so sound and pictures, which are played as they come.
    """

    prompt: PromptStatus | None = None
    is_silent: bool = False
    holds_back: bool = True

    @abstractmethod
    def start(self, head: ResponseHead) -> None:
        """A new response starts; nothing of an earlier one is kept."""

    @abstractmethod
    def feed(self, data: bytes) -> Iterable[Chunk]:
        """The chunks that these bytes complete. Raises `BackendBroken` for an error inside the stream."""

    def take_signs(self) -> bytes:
        """The signs of life since the last chunk, such as comments: bytes that a client of the same protocol may get at
        once, since they are no part of the answer. Those that are not taken come with the next chunk."""
        return b""

    @abstractmethod
    def finish(self) -> Iterable[Chunk]:
        """The connection ended. Raises `BackendBroken` unless the response was complete."""


class Upstream(ABC):
    """A protocol as backends speak it. `wire` is the protocol's name; `headers` go with requests that the protocol does
    not describe."""

    wire: str
    headers: tuple[tuple[str, str], ...] = ()

    def speaks(self, wire: str) -> bool:
        """Whether a request of this protocol is sent on as it is, without being expanded."""
        return wire == self.wire

    @abstractmethod
    def build(self, request: Request, *, model: str, stream: bool) -> WireRequest:
        """The request for a backend that calls the model `model`; `stream` asks for a stream even for a whole response.

        Raises `BadRequest` for a kind of request that the protocol does not have. A request of a protocol that this
        upstream does not speak must be expanded.
        """

    @abstractmethod
    def parser(self, request: Request, *, fields: bool) -> Parser:
        """A parser for the response; `fields` asks for decoded fields beside the raw bytes."""

    def forward_path(self, path: str) -> str:
        """Where a backend has a client's path that the protocol does not describe."""
        return path

    def discover(self, known: Mapping[str, RemoteModel]) -> Discovery:
        """Ask a server which models it has; `known` are those of the last time, by name. Raises `ListUnavailable`."""
        raise ListUnavailable("servers of this kind do not list their models")


class Adapter(ABC):
    """A protocol as clients speak it. `operations` are in the order in which paths are matched."""

    name: str
    operations: Sequence[Operation]

    @abstractmethod
    def decode(self, operation: Operation, incoming: Incoming) -> Request:
        """The canonical request. Raises a `GatewayError` that says what is wrong with the bytes."""

    def expand(self, request: Request) -> Request:
        """The same request with everything decoded that a backend of another protocol needs."""
        return request

    def apply_preset(self, request: Request, preset: Preset) -> Request:
        """The request with the preset's values wherever the client gave none. Called before `validate`."""
        return request

    def validate(self, request: Request, card: ModelCard) -> Request:
        """The request with the defaults that depend on the model.

        Called once, when the model is known and before the request is queued. Raises a `GatewayError` for what the
        model does not support, such as tools, if the protocol requires that.
        """
        return request

    def with_stored(self, request: Request, stored: StoredResponses, *, pass_on: bool) -> Request:
        """The request with what it refers to of stored responses.

        Raises `BadRequest` for what is not stored, unless `pass_on`: a backend may have stored it.
        """
        return request

    def wants_stored(self, request: Request) -> bool:
        """Whether its response is to be stored."""
        return False

    def stored_response(
        self, request: Request, body: bytes, at: float, stored: StoredResponses
    ) -> StoredResponse | None:
        """The response to a request as its client sent it, to be stored; `None` if it cannot be."""
        return None

    def stored_info(self, request: StoredRequest, stored: StoredResponses) -> WireResponse:
        """The answer to a request about a stored response, before it is deleted if that is requested. Raises `NotFound`."""
        raise NotFound(f"The {self.name} adapter stores no responses.")

    def stream_info(self, request: StoredRequest, found: Sequence[StreamInfo]) -> WireResponse:
        """The answer to a `lookup` of streams, or after a `stop`."""
        raise NotFound(f"The {self.name} adapter resumes no streams.")

    def downloads_info(self, request: StartDownload | FindDownloads, found: Sequence[Download]) -> WireResponse:
        """The answer to a request about downloads: those that it is about."""
        raise NotFound(f"The {self.name} adapter downloads nothing in the background.")

    def check_for_engines(self, request: Request) -> None:
        """Raises `BadRequest` for what certainly cannot be sent to an engine. Called before one is started."""
        return

    def shortens(self, request: Request) -> bool:
        """Whether `amend` shortens the request if it is too long."""
        return False

    def amend(self, request: Request, rejected: BackendRejected) -> Request | None:
        """Another form of a request that the backend rejected, smaller each time; `None` to let the rejection stand.

        Raises `BadRequest` if the backend lacks the route, and the request has no other form."""
        return None

    def model_info(self, request: ModelInfoRequest, listing: ModelList) -> WireResponse:
        """The response, from the catalogue alone. Raises `ModelNotFound` for a model that is not listed."""
        raise NotFound(f"The {self.name} adapter has no information of the kind {request.kind!r}.")

    def is_subscription(self, request: ModelInfoRequest) -> bool:
        """Whether the response is a stream of `change_events`."""
        return False

    def change_events(self, before: ModelList | None, now: ModelList) -> bytes:
        """The events that lead from one snapshot to the next, or to the first; empty if nothing changed."""
        return b""

    @abstractmethod
    def encoder(self, request: Request, *, response_id: str, created: int, progress: str) -> Encoder:
        """An encoder for one response; `response_id` and `created` (seconds) are for responses that need made-up ones.

        `progress` is the setting: `thinking`, `quiet`, `comments` or `off`.
        """

    @abstractmethod
    def error_response(self, error: GatewayError, operation: Operation | None = None) -> WireResponse:
        """The error as a complete response of this protocol."""

    def rate_limit_headers(self, limits: Sequence[RateLimit], now: float) -> list[tuple[str, str]]:
        """Headers that say what is left of the limits of the client's key. `now` is in seconds since the epoch."""
        return openai_headers(limits)

    def allows_origin(self, origin: str) -> bool:
        """Whether web pages of this `Origin` may call the adapter's routes although no setting names them."""
        return False

    def origin(
        self,
        operation: Operation,
        incoming: Incoming,
        *,
        body: bytes | None = None,
        path: str | None = None,
        content_type: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        json_body: JsonBody | None = None,
    ) -> Origin:
        """What the client sent, for the `origin` of a request."""
        return Origin(
            wire=self.name,
            operation=operation.name,
            body=incoming.body if body is None else body,
            method=incoming.method,
            path=incoming.path if path is None else path,
            query=incoming.query,
            content_type=content_type or incoming.headers.get("content-type", "application/json"),
            headers=headers,
            json_body=json_body,
        )


def raise_after(chunks: Iterable[Chunk], error: GatewayError) -> Iterator[Chunk]:
    """For parsers: the chunks that were read before the error, then the error."""
    yield from chunks
    raise error
