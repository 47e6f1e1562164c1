"""The `supervisor:` section of the configuration file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from hostler.profiles.yaml_config import Size


class TLSSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server's certificate (with those that lead to its issuer) and its key, in PEM files that are read again when they
    change."""

    cert: str
    """Certificate for HTTPS, in a PEM file with those that lead to its issuer. Unix sockets stay plain. A file that
    changes is read again within a second or two, without a restart."""
    key: str
    """Key of the certificate, in a PEM file without a password."""


class DeviceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU that models share. `budget` is what all of them together may take of it, in bytes; `None`: all that other
    programs leave."""

    budget: Size | None = None
    """What all models together may take of this GPU. What other programs take is not available in any case. Left out:
    all that they leave."""


class SleepSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Puts the machine to sleep after `after_s` idle seconds, with `command` or, with `suspend`, by the system."""

    after_s: Annotated[float, msgspec.Meta(gt=0)]
    """How long the machine must have been idle."""
    command: str | None = None
    """Command that puts the machine to sleep, without a shell."""
    suspend: bool = False
    """Suspend with `systemctl suspend`, which needs the permission to do so. Either this or `command`."""

    @property
    def argv(self) -> list[str]:
        """The command. Raises `ValueError` if its quotes are not closed."""
        return ["systemctl", "suspend"] if self.command is None else shlex.split(self.command)


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How engines run on this host. Times are in seconds, sizes in bytes."""

    listen: str = "127.0.0.1:8080"
    """The address for gateways, or `unix:/run/hostler/supervisor.sock` for a Unix socket, which gateways of this
    machine have as `backends.NAME.url`. Beyond loopback a token must be set."""
    tls: TLSSettings | None = None
    """Certificate and key for HTTPS between gateways and this supervisor. Left out: plain HTTP."""
    token: str | None = None
    """The token that gateways must send. Required for an address beyond loopback."""
    token_file: str | None = None
    """File that contains the token that gateways must send."""
    engine: str | None = None
    """The program that runs models: a command line of `llama-server`, `embedded` for the one of the `[embedded]` extra,
    or a name of `engines` or a preset. Left out: `llama-server` if it is on the PATH, else the embedded one."""
    engine_host: str | None = None
    """The address on which engines listen for the gateway. Left out: the one of `supervisor.listen`; loopback in
    `hostler up`."""
    engine_ports: str | None = None
    """The ports engines may take, `first-last`, for the firewall. Left out: any free port."""
    exclusive: bool | None = None
    """Whether one model runs at a time (pinned ones beside it). Left out: yes, unless `memory_budget`, `devices`,
    `groups` or `sets` are set."""
    memory_budget: Size | None = None
    """Memory for all models together. Several run side by side as long as they fit."""
    devices: Mapping[str, DeviceSettings] = {}
    """Limits for single GPUs, by their names: `gpu0`, `gpu1` and so on, as `hostler status` lists them."""
    groups: Mapping[str, tuple[str, ...]] = {}
    """Groups of profiles, by names of your choice: of each group one model runs at a time."""
    sets: tuple[tuple[str, ...], ...] = ()
    """Profiles that may run together: loaded models are always part of one set."""
    yield_to_others: bool = False
    """Unload idle models when other programs need a GPU's memory."""
    return_to_default_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Idle time of the host after which the default model is loaded again, if it had to make room for another one. Left
    out: it is loaded when it is requested."""
    sleep: SleepSettings | None = None
    """Puts the machine to sleep while it is idle. Left out: it stays awake."""
    prepare_next: Literal["off", "read", "start"] = "read"
    """What is done for the next model while another one finishes its answers and is saved: its file is fetched and read into
    the page cache, and while the other one is saved an embedded engine is started, but holds before it takes memory for its
    model (`read`), or its engine is started as a whole if its memory is free (`start`)."""
    release_s: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    """How long a start waits at most for GPU memory that the driver has not freed yet after the last engine's end."""
    drain_s: float = 30.0
    """Time a model may take to finish its answers before it is unloaded. A switch or an idle time waits for answers of
    gateways without this limit; it applies to answers of others, to changed profiles, and to answers in progress when
    the supervisor stops."""
    stop_grace_s: float = 10.0
    """Time an engine may take to exit before it is killed."""
    start_timeout_s: float = 300.0
    """Time an engine may take to load its model and become ready."""
    max_failures: int = 3
    """Failures in a row after which a model is `failed`: requests for it fail at once until the backoff is over."""
    backoff_s: float = 1.0
    """Backoff after the first failure of an engine; it doubles each time."""
    max_backoff_s: float = 60.0
    """The longest backoff after failures of an engine."""
    stable_s: float = 30.0
    """Time an engine must have been ready for earlier failures to be forgotten."""
    watchdog_s: float = 30.0
    """Time an engine may leave health checks unanswered before it is restarted; `0`: unlimited."""
    slots_dir: str | None = None
    """Folder for conversations saved over a switch, so that long ones need not be processed again. It becomes readable
    by this user only, so it must not be shared. Left out: `slots` in the cache folder."""
    slots_max: Size = Size(8 * 1024**3)
    """Maximum size of all saved conversations; `0` saves none."""
    slots_max_age_s: float = 7 * 24 * 3600.0
    """Time a saved conversation is kept."""
    slots_min_tokens: int = 256
    """Minimum length of a conversation that is saved."""
    log_lines: int = 2000
    """Log lines kept of each model's engines."""


class HostLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The values of `gateway.queue` and `gateway.switching` that this file sets for its host; `None` leaves a value to the
    gateways."""

    max_waiting: int | None = None
    max_wait_s: float | None = None
    patience_s: float | None = None
    min_residency_s: float | None = None
