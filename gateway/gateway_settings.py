"""The settings of the gateway itself, section by section: values only. The whole file is read in `config.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from hostler.profiles.schema import ProgressMode
from hostler.profiles.yaml_config import Size
from hostler.supervisor.config import TLSSettings

Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of a host's queue."""

    max_waiting: Annotated[int, msgspec.Meta(ge=0)] = 10
    """Requests that may wait for a host. Further ones are refused with status 429 and a `Retry-After` that is their
    place in line: coming back then, they get in before later ones."""
    max_wait_s: Seconds = 120.0
    """Time a request may wait in total for others, over all backends that are tried; then it is refused with status
    503. The load of its own model does not count: `supervisor.start_timeout_s` limits that."""


class SwitchingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a host switches between models, and the progress shown to waiting clients.

    Progress starts just before clients and proxies that expect a byte within a second give up, and late enough for
    early errors (a missing file, a rejected engine argument) to keep their own status. `progress_for` has other modes for
    protocols, by name.
    """

    patience_s: Seconds = 10.0
    """Time that requests for the loaded model may overtake one that waits for another model."""
    min_residency_s: Seconds = 0.0
    """Time a model stays loaded at least before another may replace it."""
    progress: ProgressMode = "thinking"
    """What a streaming client receives until its first token: `thinking` sends progress as the model's reasoning,
    `quiet` sends empty chunks that keep the connection alive, `comments` sends only SSE comments, `off` only the
    backend's own signs of life. Ollama's clients get lines without content, with `thinking` as well if they have asked
    for it, and nothing with `comments`."""
    progress_after_s: Seconds = 0.75
    """Delay before the first progress, so that an early error keeps its status: after progress has begun, errors are
    part of the stream. More than a second is too long for some clients and proxies."""
    progress_every_s: Annotated[float, msgspec.Meta(gt=0)] = 1.5
    """Interval of the progress that a waiting client sees after the first."""
    progress_for: Mapping[str, ProgressMode] = {}
    """Another `progress` for clients of some protocols: `anthropic`, `llamacpp`, `lmstudio`, `ollama`, `openai`."""
    loaded_only: tuple[str, ...] = ()
    """Regular expressions: requests below `/upstream/MODEL` for a path in which one is found do not load the model, and get
    status 409 while it is not loaded."""


class PlacementSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When another host loads a model that one has already, a replica, and how long that stays after its last request."""

    replica_wait_s: Seconds = 2.0
    """Time that a request would wait at the hosts which have its model loaded, beyond which another host loads it as
    well."""
    replica_idle_s: Seconds = 300.0
    """Time without requests after which such a replica is unloaded again; less if its profile says so."""


class TimeoutSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time limits of a backend: to accept a connection, to its first byte, and between two bytes.

    `first_token_s` is the limit for a backend that sends keep-alives instead of a first token, 6 times `first_byte_s` by
    default.
    """

    connect_s: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    """Time to establish a connection to a backend."""
    first_byte_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    """Time from the end of the request to the first byte of the answer; counted anew with every sign of life while the
    backend reads the prompt."""
    first_token_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Time to the first token while the backend sends keep-alives; counted anew whenever it reports progress. Default:
    6 times `first_byte_s`."""
    between_bytes_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    """Time between two pieces of an answer; keep-alives after its first token do not count."""


class ProbingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often the health of backends is checked: while they respond, and while they are down."""

    every_s: Annotated[float, msgspec.Meta(gt=0)] = 15.0
    """Interval of the health checks of a backend that is healthy."""
    down_every_s: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    """Interval of the health checks of a backend that is down; clouds are checked a third as often."""


class DiscoverySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often backends without a supervisor are asked which models they have."""

    every_s: Annotated[float, msgspec.Meta(ge=1)] = 30.0
    """Interval at which local backends are asked for their models; others are asked a twentieth as often."""


class LoggingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The level and format of the log. On a terminal `auto` means a live view."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level that is logged, to standard error. `--log-level` takes precedence. Also for `hostler supervisor`.
    """
    format: Literal["auto", "plain", "json"] = "auto"
    """`json`: one object per line, with all fields of a request. `plain`: plain lines, also on a terminal. `auto`: a
    live view on a terminal, else plain lines. `--log-format` takes precedence."""


class SpendingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What remote backends may cost in a day, in US dollars, and the file that keeps the sum."""

    daily_limit: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """What all clouds may cost per day, as they report it (OpenRouter does). Each request reserves what the dearest of
    the latest answers cost, so that many at once stay within the limit; one that does not fit is skipped. Beyond the
    limit all are skipped until midnight. Default: no limit."""
    file: str | None = None
    """File with today's cost. Default: `spending.json` in `$STATE_DIRECTORY`, else in `$XDG_STATE_HOME/hostler`, else
    in `~/.local/state/hostler`."""


MISSING_TRACING_EXTRA = "gateway.tracing.endpoint requires an extra; run `pip install 'hostler[otel]'`"


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The OpenTelemetry collector (OTLP over HTTP) and the traces sent to it. Without an endpoint there are none."""

    endpoint: str | None = None
    """URL of a collector that accepts OTLP over HTTP. Default: no traces."""
    headers: Mapping[str, str] = {}
    """Headers for the collector, for example its key (`${env:NAME}`)."""
    service: str = "hostler"
    """The `service.name` of the gateway in its traces."""
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Fraction of the traces started here that are recorded, from 0 to 1. A client's own sampling decision takes
    precedence."""
    to_clouds: bool = False
    """Pass the context of the trace on to clouds, too, not only to local backends."""


class RecordingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether transcripts of prompts and answers are kept, where, how much and for how long."""

    contents: bool = False
    """Record prompts and answers. When it is turned off again, the file stays until you delete it; the log says so."""
    file: str | None = None
    """File with the recordings. Default: `contents.sqlite3` in `$STATE_DIRECTORY`, else in `$XDG_STATE_HOME/hostler`,
    else in `~/.local/state/hostler`."""
    max_size: Size = Size(256 * 1024**2)
    """Size of the file; the oldest recordings are deleted first. At most 1 MiB of a prompt and of an answer is
    recorded."""
    max_age_s: Annotated[float, msgspec.Meta(gt=0)] = 7 * 24 * 3600.0
    """How long recordings of prompts and answers are kept."""


class ResponsesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether responses of the responses API are stored, where, how much and for how long."""

    store: Literal["memory", "disk", "off"] = "memory"
    """Where responses are stored: in `memory`, until the gateway stops; on `disk`, over restarts as well; or nowhere
    (`off`)."""
    file: str | None = None
    """File for responses that are stored on disk. Default: `responses.sqlite3` in `$STATE_DIRECTORY`, else in
    `$XDG_STATE_HOME/hostler`, else in `~/.local/state/hostler`."""
    max_size: Size = Size(32 * 1024**2)
    """Size of all stored responses; the oldest are dropped first."""
    max_age_s: Annotated[float, msgspec.Meta(gt=0)] = 7 * 24 * 3600.0
    """How long stored responses are kept."""


class BatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files and batches of clients: how much is stored, and when their requests are served."""

    enabled: bool = True
    """Serve files and batches; if not, their paths are passed on like unknown ones."""
    file: str | None = None
    """Where files, requests and results of batches are kept. Default: `batches.sqlite3` in `$STATE_DIRECTORY`, else in
    `$XDG_STATE_HOME/hostler`, else in `~/.local/state/hostler`."""
    max_size: Size = Size(1024**3)
    """Size of all files and results of batches together. Uploads beyond are refused; a request whose result does not
    fit fails."""
    max_file: Size = Size(100 * 1024**2)
    """The largest upload, and the largest message batch."""
    max_requests: Annotated[int, msgspec.Meta(ge=1)] = 50_000
    """Requests that one batch may have."""
    max_age_s: Annotated[float, msgspec.Meta(gt=0)] = 30 * 24 * 3600.0
    """How long files are kept, and batches after their end."""
    idle_s: Seconds = 10.0
    """How long a host must have been without other requests before a model is loaded for a batch."""
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    """Requests of batches in progress at a time, for each model. A host serves as many of them as it has slots."""


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How streams with a conversation's id outlive their client's connection. Sizes in bytes, of one stream and of all."""

    resume: bool = True
    """Let streams of conversations go on when their client disconnects, so that it can resume them; if not, a request
    ends when its client disconnects."""
    keep_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    """How long a stream can be resumed after its end."""
    detached_s: Annotated[float, msgspec.Meta(gt=0)] = 1800.0
    """How long a stream goes on that has no client."""
    max_stream: Size = Size(4 * 1024**2)
    """How much is kept of one stream; its beginning is dropped first."""
    max_size: Size = Size(64 * 1024**2)
    """How much is kept of all streams; those that have ended are dropped first."""


class LibrarySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The changes that clients may make to models, and the file that stores them."""

    file: str | None = None
    """YAML file with the created models; you may edit it, too. Default: `models.yaml` in `$STATE_DIRECTORY`; else
    beside the configuration file, `NAME.models.yaml`; without one in `$XDG_STATE_HOME/hostler`, else in
    `~/.local/state/hostler`."""
    change: bool = True
    """Allow clients with the scope `operate` to copy and create models; without API keys, every client."""
    delete: bool = False
    """Allow clients that may change models to delete created ones. Profiles of the configuration are never deleted."""
    uploads_max: Size = Size(0)
    """Total size of uploaded model files, kept in the cache folder. 0 disables uploads, since the engine parses
    untrusted files."""


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gateway itself: where it listens, who may use it, and how it queues, retries and logs."""

    listen: tuple[str, ...] = ("127.0.0.1:8000",)
    """Addresses to listen on. Beyond loopback an API key is required (`hostler keys add NAME`), or Hostler refuses to
    start. Add `127.0.0.1:11434` to serve Ollama's usual port, too, and `unix:/run/hostler/gateway.sock` for a Unix
    socket, which its owner and its group may use."""
    tls: TLSSettings | None = None
    """Certificate and key for HTTPS. Left out: plain HTTP."""
    api_keys: tuple[str, ...] = ()
    """API keys with all scopes, besides those of the file; with one of them, every client needs a key."""
    api_keys_file: str | None = None
    """File with the API keys, as hashes. Default: `$XDG_CONFIG_HOME/hostler/keys`, else `~/.config/hostler/keys`. As
    soon as it contains a key, every client needs one."""
    key_usage_file: str | None = None
    """File that counts what keys with limits use. Default: `key-usage.json` in `$STATE_DIRECTORY`, else in
    `$XDG_STATE_HOME/hostler`, else in `~/.local/state/hostler`."""
    open_probes: bool = False
    """Serve model lists without a key, for clients that read them before they log in."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names that clients may use for this gateway (or supervisor) in the `Host` header; `*.home.example` allows
    all names below. Always allowed: addresses, the machine's own name, `localhost`, and names that end in `.localhost`,
    `.local` or `.internal`, such as `host.docker.internal`."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the gateway from a browser. Without API keys, pages of this machine and apps
    may call all models' routes; with them only Ollama's, and with a key."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of reverse proxies, or `unix` for a Unix socket. Only from these, `X-Forwarded-For` names
    the client, in logs, limits and the throttle of invalid keys, and `X-Forwarded-Proto` its scheme."""
    root_path: str = ""
    """The path below which a reverse proxy serves the gateway, page and API, whether it strips it or not."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Processes that serve models' routes, to use more than one core. With 1 a single process does everything; with more,
    a further process owns what they share, and each takes memory of its own."""
    max_body: Size = Size(64 * 1024**2)
    """The largest request body, also after decompression; larger ones are refused with status 413."""
    drain_s: Seconds = 30.0
    """Time for answers in progress after Ctrl-C or SIGTERM. A second signal stops at once."""
    logging: LoggingSettings = LoggingSettings()
    """What is logged, and how."""
    queue: QueueSettings = QueueSettings()
    """How many requests may wait for a host, and how long."""
    switching: SwitchingSettings = SwitchingSettings()
    """When a host switches between models, and what waiting clients see of it."""
    placement: PlacementSettings = PlacementSettings()
    """When another host loads a model that one has loaded already."""
    timeouts: TimeoutSettings = TimeoutSettings()
    """How long backends may take to answer."""
    probing: ProbingSettings = ProbingSettings()
    """How often the health of backends is checked."""
    discovery: DiscoverySettings = DiscoverySettings()
    """How often backends without a supervisor are asked for their models."""
    spending: SpendingSettings = SpendingSettings()
    """What remote backends may cost in a day."""
    tracing: TracingSettings = TracingSettings()
    """OpenTelemetry traces of requests. Left out: none."""
    recording: RecordingSettings = RecordingSettings()
    """Whether prompts and answers are recorded. Left out: they are not."""
    responses: ResponsesSettings = ResponsesSettings()
    """Storage of responses of OpenAI's Responses API, to which later requests can refer."""
    batches: BatchSettings = BatchSettings()
    """Files and batches, whose requests are served while a host has nothing else to do."""
    streams: StreamSettings = StreamSettings()
    """Streams that go on when their client disconnects, and can be resumed."""
    library: LibrarySettings = LibrarySettings()
    """Which changes clients may make to models."""
    chain: tuple[str, ...] | None = None
    """The order in which backends are tried, by their names in `backends`; `local` is the supervisor of `hostler up`,
    and comes first unless it is named. Default: `local`, then `backends` in their order."""


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the circuit of a failing backend opens, and for how long."""

    failures: Positive = 3
    """Consecutive failures of a backend that open its circuit: it gets no requests for a while."""
    open_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """Time a circuit stays open at first; doubled with each further failure."""
    max_open_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    """The longest time a circuit stays open."""
