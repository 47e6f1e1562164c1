"""The frames of a gateway's connection to a supervisor, `POST /leases`, and how they are cut out of the byte stream.

A frame is its length in four bytes (big-endian), then a MessagePack array: the frame's name and its fields in order.
docs/operations.md describes the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from hostler.adapters.canonical import Usage
from hostler.supervisor.contract import (
    DeviceStatus,
    EngineAddress,
    Failure,
    HostStatus,
    ModelLease,
    ModelStatus,
    PromptIdentity,
    SwitchMoved,
)
from hostler.supervisor.scheduling.events import Waiting
from hostler.supervisor.scheduling.queue import MAX_PRIORITY
from hostler.supervisor.scheduling.types import MAX_SECONDS, RefusalReason, RevokeReason, SchedulerSettings
from hostler.supervisor.scheduling.views import ModelView, ServiceOutlook

#: The version of this protocol, in the header `Hostler-Protocol`. Both sides must have the same.
PROTOCOL_VERSION: Final = 1

PROTOCOL_HEADER: Final = "Hostler-Protocol"
MEDIA_TYPE: Final = "application/vnd.hostler.leases"
PATH: Final = "/leases"

#: Both sides send a ping in this interval, and give up a connection on which nothing came for `DEAD_S` seconds.
PING_S: Final = 1.0
DEAD_S: Final = 3.0

#: The longest frame of a gateway, and of a supervisor, in bytes.
MAX_REQUEST: Final = 256 * 1024
MAX_EVENT: Final = 16 * 1024 * 1024

#: The most leases of one connection, queued ones included.
MAX_LEASES: Final = 10_000

#: The longest name of a model, a client or a request.
MAX_NAME: Final = 200

#: The most queued requests in one `QueueFrame`.
MAX_LISTED: Final = 500

_T = TypeVar("_T")

LeaseId = Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
_Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
# Shown in logs.
_PlainName = Annotated[str, msgspec.Meta(max_length=MAX_NAME, pattern=r"^[A-Za-z0-9._-]+\Z")]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)]


# From gateways.


class HelloFrame(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """The first frame. `instance` names this start of the gateway, `held` are its leases from a lost connection.

    `limits` are its `queue` and `switching` settings, which apply where the supervisor's own file sets none.
    """

    instance: _PlainName
    name: _PlainName
    limits: SchedulerSettings
    held: tuple[LeaseId, ...] = ()


class AskFrame(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """Request a lease. The gateway chooses `id`, new for each. `waited_s`: it has waited so long already.
    `client_port` and `background` as in `Ticket`, `prompt` identifies the conversation."""

    id: LeaseId
    model: _Name
    client: _Name = ""
    request_id: _Name = ""
    priority: Annotated[int, msgspec.Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    keep_alive_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    waited_s: _Seconds = 0.0
    client_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    prompt: PromptIdentity | None = None
    background: bool = False


class ReleaseFrame(msgspec.Struct, frozen=True, array_like=True, tag="release"):
    """End a lease, or leave the queue. `answered`: with an answer, whose `usage` may be known; `timed_out`: the engine
    was silent for longer than it may be."""

    id: LeaseId
    answered: bool = False
    usage: Usage | None = None
    timed_out: bool = False


class LostFrame(msgspec.Struct, frozen=True, array_like=True, tag="lost"):
    """The engine of this generation refused a connection."""

    model: _Name
    generation: int


class SeedFrame(msgspec.Struct, frozen=True, array_like=True, tag="seed"):
    """Durations of each model's earlier answers, oldest first, as a basis for estimates."""

    answers: dict[_Name, tuple[_Seconds, ...]]


class PingFrame(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """A sign of life, in both directions."""


RequestFrame = HelloFrame | AskFrame | ReleaseFrame | LostFrame | SeedFrame | PingFrame


class InvalidAsk(msgspec.Struct, frozen=True):
    """An `ask` that breaks the protocol, but has an `id` by which it can be refused."""

    id: int
    problem: str


# From supervisors.


class WelcomeFrame(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """The answer to `hello`. `generation` is the supervisor's: see `HostStatus`."""

    generation: int


class GrantFrame(msgspec.Struct, frozen=True, array_like=True, tag="grant"):
    """The lease is granted. `waited_s`, `switch_s` and `slot` as in `Lease`."""

    id: int
    address: EngineAddress
    waited_s: float = 0.0
    switch_s: float = 0.0
    slot: int | None = None


class RefuseFrame(msgspec.Struct, frozen=True, array_like=True, tag="refuse"):
    """The lease is refused."""

    id: int
    reason: RefusalReason
    retry_after_s: float = 0.0
    failure: Failure | None = None
    waited_s: float = 0.0
    switch_s: float = 0.0
    model_lease: ModelLease | None = None


class QueuePlace(msgspec.Struct, frozen=True, array_like=True):
    """A queued lease's place in the order of service, from 1. `measured`: the estimate rests on measured times."""

    id: int
    position: int | None
    eta_s: float
    measured: bool


class PlacesFrame(msgspec.Struct, frozen=True, array_like=True, tag="places"):
    """Where queued leases are; `whole`: all of this gateway's."""

    places: tuple[QueuePlace, ...]
    whole: bool = False


class RevokeFrame(msgspec.Struct, frozen=True, array_like=True, tag="revoke"):
    """The lease's engine is stopped although the lease is held."""

    id: int
    reason: RevokeReason = "unloaded"


class EngineStoppingFrame(msgspec.Struct, frozen=True, array_like=True, tag="engine_stopping"):
    """This engine stops next: close idle connections to it."""

    address: EngineAddress


class HostFrame(msgspec.Struct, frozen=True, array_like=True, tag="host"):
    """The whole status: first after `welcome`, and whenever profiles change."""

    status: HostStatus


class ModelFrame(msgspec.Struct, frozen=True, array_like=True, tag="model"):
    """A model's process changed."""

    status: ModelStatus


class DevicesFrame(msgspec.Struct, frozen=True, array_like=True, tag="devices"):
    """New readings of the host's GPUs."""

    devices: tuple[DeviceStatus, ...]


class SwitchFrame(msgspec.Struct, frozen=True, array_like=True, tag="switch"):
    """A switch entered a phase or made progress."""

    switch: SwitchMoved


class QueueFrame(msgspec.Struct, frozen=True, array_like=True, tag="queue"):
    """The first queued requests of all gateways, the number of all, and how many are served."""

    waiting: tuple[Waiting, ...]
    total: int
    serving: int


class ViewFrame(msgspec.Struct, frozen=True, array_like=True, tag="view"):
    """The models as the scheduler sees them; `idle_until` counts from now. `conversations` as in
    `AnsweredConversations`."""

    models: tuple[ModelView, ...]
    outlooks: dict[str, ServiceOutlook]
    conversations: dict[str, tuple[int, ...]] = {}


class ErrorFrame(msgspec.Struct, frozen=True, array_like=True, tag="error"):
    """The gateway has broken the protocol, and the connection ends."""

    message: str


class ClosingFrame(msgspec.Struct, frozen=True, array_like=True, tag="closing"):
    """The supervisor stops: it grants nothing any more, and waits for the leases that are held."""


EventFrame = (
    WelcomeFrame
    | GrantFrame
    | RefuseFrame
    | PlacesFrame
    | RevokeFrame
    | EngineStoppingFrame
    | HostFrame
    | ModelFrame
    | DevicesFrame
    | SwitchFrame
    | QueueFrame
    | ViewFrame
    | ClosingFrame
    | ErrorFrame
    | PingFrame
)


class InvalidFrame(Exception):
    """The other side does not speak this protocol."""


class FrameReader(Generic[_T]):
    """Cuts frames out of a byte stream. A frame longer than `limit` bytes raises `InvalidFrame`, as does one of another
    shape, unless `salvage` makes something of it."""

    def __init__(
        self,
        decode: Callable[[bytes], _T],
        limit: int,
        salvage: Callable[[bytes, str], _T | None] = lambda frame, problem: None,
    ) -> None:
        self._decode = decode
        self._limit = limit
        self._salvage = salvage
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[_T]:
        """The frames that are complete with these bytes. Iterate to the end."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= 4:
                length = int.from_bytes(buffer[start : start + 4], "big")
                if length > self._limit:
                    raise InvalidFrame(f"a frame of {length} bytes exceeds the limit of {self._limit}")
                if len(buffer) - start - 4 < length:
                    break
                frame = bytes(buffer[start + 4 : start + 4 + length])
                start += 4 + length
                yield self._decoded(frame)
        finally:
            del buffer[:start]

    def _decoded(self, frame: bytes) -> _T:
        try:
            return self._decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            salvaged = self._salvage(frame, str(error))
            if salvaged is None:
                raise InvalidFrame(f"invalid frame: {error}") from None
            return salvaged


class _AskStart(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    id: LeaseId


# One decoder each for all connections.
_decode_ask_start = msgspec.msgpack.Decoder(_AskStart).decode
_decode_request: Callable[[bytes], RequestFrame] = msgspec.msgpack.Decoder(RequestFrame).decode
_decode_event: Callable[[bytes], EventFrame] = msgspec.msgpack.Decoder(EventFrame).decode


def _salvage_ask(frame: bytes, problem: str) -> InvalidAsk | None:
    try:
        return InvalidAsk(_decode_ask_start(frame).id, problem)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError):
        return None


def request_reader() -> FrameReader[RequestFrame | InvalidAsk]:
    """Reads what gateways send."""
    return FrameReader(_decode_request, MAX_REQUEST, _salvage_ask)


def event_reader() -> FrameReader[EventFrame]:
    """Reads what supervisors send."""
    return FrameReader(_decode_event, MAX_EVENT)


_encode = msgspec.msgpack.Encoder().encode


def encode_frames(frames: Iterable[msgspec.Struct]) -> bytes:
    """The bytes of some frames."""
    encoded = [_encode(frame) for frame in frames]
    return b"".join(part for frame in encoded for part in (len(frame).to_bytes(4, "big"), frame))
