"""The settings of the gateway itself, section by section: values only. The whole file is read in `config.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import TLSSettings

Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
ProgressMode = Literal["thinking", "quiet", "comments", "off"]


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of a host's queue."""

    max_waiting: Annotated[int, msgspec.Meta(ge=0)] = 10
    max_wait_s: Seconds = 120.0


class SwitchingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a host switches between models, and the progress shown to waiting clients.

    Progress starts just before clients and proxies that expect a byte within a second give up, and late enough for
    early errors (a missing file, a rejected engine argument) to keep their own status. `progress_for` has other modes for
    protocols, by name.
    """

    patience_s: Seconds = 10.0
    min_residency_s: Seconds = 0.0
    progress: ProgressMode = "thinking"
    progress_after_s: Seconds = 0.75
    progress_every_s: Annotated[float, msgspec.Meta(gt=0)] = 1.5
    progress_for: Mapping[str, ProgressMode] = {}


class TimeoutSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time limits of a backend: to accept a connection, to its first byte, and between two bytes.

    `first_token_s` is the limit for a backend that sends keep-alives instead of a first token, 6 times `first_byte_s` by
    default.
    """

    connect_s: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    first_byte_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    first_token_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    between_bytes_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0


class ProbingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often the health of backends is checked: while they respond, and while they are down."""

    every_s: Annotated[float, msgspec.Meta(gt=0)] = 15.0
    down_every_s: Annotated[float, msgspec.Meta(gt=0)] = 2.0


class DiscoverySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often backends without a supervisor are asked which models they have."""

    every_s: Annotated[float, msgspec.Meta(ge=1)] = 30.0


class LoggingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The level and format of the log. On a terminal `auto` means a live view."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "plain", "json"] = "auto"


class SpendingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What remote backends may cost in a day, in US dollars, and the file that keeps the sum."""

    daily_limit: Annotated[float, msgspec.Meta(ge=0)] | None = None
    file: str | None = None


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The OpenTelemetry collector (OTLP over HTTP) and the traces sent to it. Without an endpoint there are none."""

    endpoint: str | None = None
    headers: Mapping[str, str] = {}
    service: str = "hostler"
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    to_clouds: bool = False


class RecordingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether transcripts of prompts and answers are kept, where, how much and for how long."""

    contents: bool = False
    file: str | None = None
    max_size: Size = Size(256 * 1024**2)
    max_age_s: Annotated[float, msgspec.Meta(gt=0)] = 7 * 24 * 3600.0


class ResponsesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether responses of the responses API are stored, where, how much and for how long."""

    store: Literal["memory", "disk", "off"] = "memory"
    file: str | None = None
    max_size: Size = Size(32 * 1024**2)
    max_age_s: Annotated[float, msgspec.Meta(gt=0)] = 7 * 24 * 3600.0


class BatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files and batches of clients: how much is stored, and when their requests are served."""

    enabled: bool = True
    file: str | None = None
    max_size: Size = Size(1024**3)
    max_file: Size = Size(100 * 1024**2)
    max_requests: Annotated[int, msgspec.Meta(ge=1)] = 50_000
    max_age_s: Annotated[float, msgspec.Meta(gt=0)] = 30 * 24 * 3600.0
    idle_s: Seconds = 10.0
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How streams with a conversation's id outlive their client's connection. Sizes in bytes, of one stream and of all."""

    resume: bool = True
    keep_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    detached_s: Annotated[float, msgspec.Meta(gt=0)] = 1800.0
    max_stream: Size = Size(4 * 1024**2)
    max_size: Size = Size(64 * 1024**2)


class LibrarySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The changes that clients may make to models, and the file that stores them."""

    file: str | None = None
    change: bool = True
    delete: bool = False
    uploads_max: Size = Size(0)


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gateway itself: where it listens, who may use it, and how it queues, retries and logs."""

    listen: tuple[str, ...] = ("127.0.0.1:8000",)
    tls: TLSSettings | None = None
    api_keys: Annotated[
        tuple[str, ...], msgspec.Meta(description="API keys with all scopes, besides those of the key file.")
    ] = ()
    api_keys_file: str | None = None
    key_usage_file: Annotated[str, msgspec.Meta(description="File that counts what keys with limits use.")] | None = (
        None
    )
    open_probes: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    trusted_proxies: Annotated[
        tuple[str, ...], msgspec.Meta(description="Reverse proxies whose X-Forwarded-For names the client.")
    ] = ()
    root_path: Annotated[str, msgspec.Meta(description="The path below which a reverse proxy serves the gateway.")] = ""
    max_body: Size = Size(64 * 1024**2)
    drain_s: Seconds = 30.0
    logging: LoggingSettings = LoggingSettings()
    queue: QueueSettings = QueueSettings()
    switching: SwitchingSettings = SwitchingSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    probing: ProbingSettings = ProbingSettings()
    discovery: DiscoverySettings = DiscoverySettings()
    spending: SpendingSettings = SpendingSettings()
    tracing: TracingSettings = TracingSettings()
    recording: RecordingSettings = RecordingSettings()
    responses: ResponsesSettings = ResponsesSettings()
    batches: BatchSettings = BatchSettings()
    streams: StreamSettings = StreamSettings()
    library: LibrarySettings = LibrarySettings()
    chain: tuple[str, ...] | None = None


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the circuit of a failing backend opens, and for how long."""

    failures: Positive = 3
    open_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    max_open_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
