"""The frames between the main process and a worker, over a socket that the worker inherits.

A frame is its length in four bytes (big-endian), then a MessagePack array: the frame's name and its fields in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec

from hostler.adapters.remote_models import RemoteModel
from hostler.gateway.backends.circuit_breaker import BreakerState
from hostler.gateway.backends.cost import DailySpending, Reservation
from hostler.gateway.context import KeyRules
from hostler.gateway.conversation_places import AnsweredPrompt
from hostler.gateway.events import RequestFinished
from hostler.gateway.in_flight import RequestView
from hostler.gateway.joined_host import JoinedHost
from hostler.gateway.key_usage import KeyAdmission, KeyReservation
from hostler.gateway.settings import Settings
from hostler.gateway.telemetry.transcripts import Transcript
from hostler.profiles.presets import Preset
from hostler.profiles.yaml_config import Size
from hostler.supervisor.contract import ProfileInfo

_T = TypeVar("_T")

_LENGTH_BYTES: Final = 4

#: How long main process and workers may hear nothing of each other over the connection of leases, in seconds. The end of a
#: process is noticed at once; a busy machine must not look like one.
LOCAL_SILENCE_S: Final = 15.0


class SpendingState(msgspec.Struct, frozen=True, array_like=True):
    """Today's spending, what other gateways have spent, and what requests in progress have reserved: how much, and how many
    they are."""

    day: DailySpending
    elsewhere: float
    reserved: float
    open: int


class WorkerStart(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The first frame to a worker: what it serves, and where the main process listens.

    `sockets` are the numbers of the listening sockets that it inherits, `others` those of other workers, which it serves
    while they do not. `forward_to` is the main process's Unix socket
    for requests, which have to carry the `secret`, `supervisor` that of this machine's supervisor with its token.
    `keys_needed` is what the main process has decided when it started, whatever the key file contains by now. `models` are
    those of the backends without a supervisor, `profiles` those of hosts that may be asleep, `joined` are hosts that no file
    names. `conversations` are, in a cluster, the secret of `ConversationPlaces`, and what it has remembered last.
    """

    number: int
    release: str
    settings: Settings
    keys_needed: bool
    sockets: tuple[int, ...]
    others: dict[int, tuple[int, ...]]
    forward_to: str
    secret: str
    supervisor: tuple[str, str] | None
    presets: dict[str, Preset]
    models: dict[str, tuple[RemoteModel, ...]]
    profiles: dict[str, tuple[ProfileInfo, ...]]
    joined: tuple[JoinedHost, ...]
    active: str | None
    spending: SpendingState
    log_level: int
    conversations: tuple[bytes, tuple[AnsweredPrompt, ...]] | None = None


class ServerModels(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A backend without a supervisor has other models."""

    backend: str
    models: tuple[RemoteModel, ...]


class HostsJoined(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """These hosts have joined the cluster, and no others."""

    hosts: tuple[JoinedHost, ...]


class PresetsReplaced(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The models that clients created from others."""

    presets: dict[str, Preset]


class ActiveModel(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Both ways: this model is in use, and serves requests that name no model."""

    model: str


class BreakerHint(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Both ways: a breaker has opened for so many seconds, or closed; `model` is `None` for the backend's own."""

    backend: str
    model: str | None
    state: BreakerState
    seconds: float


class ConversationAnswered(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Both ways: a host has answered a prompt."""

    answered: AnsweredPrompt


class SpendingChanged(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What has been spent, over all workers."""

    state: SpendingState


class AbsentWorkers(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The workers of these numbers do not serve now: accept what connects to their sockets. All others do."""

    numbers: tuple[int, ...]


class StateQuery(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The worker answers with its `WorkerState`; one that does not is frozen."""

    number: int


class CancelRequests(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Cancel the requests with this id; the answer is `RequestsCancelled`."""

    number: int
    request_id: str


class StopWorker(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Finish the requests in progress and exit. A second one does not wait.

    `shared`: the listening sockets stay open in another process, which accepts what has connected.
    """

    shared: bool


class KeyAdmitted(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The answer to `AdmitKey`."""

    number: int
    admission: KeyAdmission


class MoneyReserved(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The answer to `ReserveMoney`."""

    number: int
    reserved: bool


class ModelsRefreshed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The answer to `RefreshModels`: whether any backend was asked."""

    number: int
    asked: bool


class WorkerReady(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The worker accepts connections."""


class WorkerFailed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The worker cannot serve, and exits."""

    message: str


class WorkerState(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The answer to `StateQuery`: the worker's requests in flight."""

    number: int
    in_flight: tuple[RequestView, ...]


class RequestsCancelled(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The answer to `CancelRequests`: how many there were."""

    number: int
    count: int


class FinishedRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A request has ended."""

    event: RequestFinished


class LogEntry(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A record of the worker's log; `traceback` is empty without one."""

    logger: str
    level: int
    at: float
    text: str
    traceback: str = ""
    audit: dict[str, Any] | None = None


class RecordedTranscript(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A request with its answer, to be stored."""

    transcript: Transcript


class AdmitKey(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """See `KeyAccounts.admit`."""

    number: int
    key: str
    rules: KeyRules
    prompt_tokens: int
    dollars: float
    has_local: bool


class SettleKey(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """See `KeyAccounts.settle`."""

    reservation: KeyReservation
    prompt_tokens: int
    answer_tokens: int
    dollars: float


class ReserveMoney(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """See `SpendingTracker.try_reserve`. The number names the reservation when it is settled."""

    number: int
    wanted: Reservation


class SettleMoney(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """See `SpendingTracker.settle`."""

    number: int
    wanted: Reservation
    cost: float | None
    answered: bool


class RefreshModels(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A model is unknown: ask the backends without a supervisor for new ones."""

    number: int


FrameToWorker = (
    WorkerStart
    | ServerModels
    | HostsJoined
    | PresetsReplaced
    | ActiveModel
    | BreakerHint
    | ConversationAnswered
    | SpendingChanged
    | AbsentWorkers
    | StateQuery
    | CancelRequests
    | StopWorker
    | KeyAdmitted
    | MoneyReserved
    | ModelsRefreshed
)
FrameFromWorker = (
    WorkerReady
    | WorkerFailed
    | WorkerState
    | RequestsCancelled
    | FinishedRequest
    | LogEntry
    | RecordedTranscript
    | ActiveModel
    | BreakerHint
    | ConversationAnswered
    | AdmitKey
    | SettleKey
    | ReserveMoney
    | SettleMoney
    | RefreshModels
)


def _encode_other(value: object) -> int:
    if isinstance(value, Size):
        return int(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be sent to a worker")


def _decode_other(kind: type, value: Any) -> object:
    if kind is Size:
        return Size(value)
    raise NotImplementedError(f"{kind.__name__} cannot be received from another process")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_other)


def encode_frame(frame: msgspec.Struct) -> bytes:
    """The frame with its length in front of it."""
    data = _encoder.encode(frame)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


class FrameStream(Generic[_T]):
    """Cuts frames of one direction out of a byte stream."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[_T] = msgspec.msgpack.Decoder(kind, dec_hook=_decode_other)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[_T]:
        """The frames that are complete now. Raises `msgspec.MsgspecError` for what is none."""
        self._buffer += data
        start, buffer = 0, self._buffer
        while len(buffer) - start >= _LENGTH_BYTES:
            end = start + _LENGTH_BYTES + int.from_bytes(buffer[start : start + _LENGTH_BYTES], "big")
            if len(buffer) < end:
                break
            frame = self._decoder.decode(bytes(buffer[start + _LENGTH_BYTES : end]))
            start = end
            yield frame
        del buffer[:start]


def frames_to_worker() -> FrameStream[FrameToWorker]:
    """What a worker receives."""
    return FrameStream(FrameToWorker)


def frames_from_worker() -> FrameStream[FrameFromWorker]:
    """What the main process receives."""
    return FrameStream(FrameFromWorker)
