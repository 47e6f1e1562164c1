"""The `supervisor:` section of the configuration file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated

import msgspec

from hostler.profiles.yaml_config import Size


class TLSSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server's certificate (with those that lead to its issuer) and its key, in PEM files that are read again when they
    change."""

    cert: str
    key: str


class DeviceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU that models share. `budget` is what all of them together may take of it, in bytes; `None`: all that other
    programs leave."""

    budget: Annotated[Size, msgspec.Meta(description="Bytes that all models together may take of this GPU.")] | None = (
        None
    )


class SleepSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Puts the machine to sleep after `after_s` idle seconds, with `command` or, with `suspend`, by the system."""

    after_s: Annotated[float, msgspec.Meta(gt=0, description="Idle seconds after which the machine is put to sleep.")]
    command: Annotated[str, msgspec.Meta(description="Command that puts the machine to sleep.")] | None = None
    suspend: Annotated[bool, msgspec.Meta(description="Suspend with `systemctl suspend`.")] = False

    @property
    def argv(self) -> list[str]:
        """The command. Raises `ValueError` if its quotes are not closed."""
        return ["systemctl", "suspend"] if self.command is None else shlex.split(self.command)


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How engines run on this host. Times in seconds, sizes in bytes.

    `engine` is a command or a path, or `embedded` for the one of the `[embedded]` extra; `None` takes `llama-server`
    from the PATH if it is installed, else the embedded one. Engines listen on `engine_host` (`None`: the address the
    supervisor is bound to) on ports of `engine_ports` (`first-last`; `None`: any free port). With `exclusive` one model
    runs at a time; with `memory_budget` or `devices` several do, as long as they fit. Of each of `groups` one model runs
    at a time; with `sets`, only models of one set run together. With `yield_to_others` idle models are unloaded when
    other programs need memory of a GPU. A host that is idle for `return_to_default_s` loads its default model again. A start
    waits up to `release_s` for memory that the last model's driver has not freed yet. `sleep` puts the machine to sleep while it
    is idle.
    """

    listen: str = "127.0.0.1:8080"
    tls: TLSSettings | None = None
    token: str | None = None
    token_file: str | None = None
    engine: str | None = None
    engine_host: str | None = None
    engine_ports: str | None = None
    exclusive: bool | None = None
    memory_budget: Size | None = None
    devices: Mapping[str, DeviceSettings] = {}
    groups: Annotated[
        Mapping[str, tuple[str, ...]],
        msgspec.Meta(
            description="Groups of profiles, by a name of your choice: of each group one model runs at a time."
        ),
    ] = {}
    sets: Annotated[
        tuple[tuple[str, ...], ...],
        msgspec.Meta(description="Profiles that may run together: loaded models are always part of one of these sets."),
    ] = ()
    yield_to_others: Annotated[
        bool, msgspec.Meta(description="Unload idle models when other programs need memory of a GPU.")
    ] = False
    return_to_default_s: (
        Annotated[
            float,
            msgspec.Meta(
                ge=0,
                description="Idle seconds after which the default model is loaded again if it was unloaded for another.",
            ),
        ]
        | None
    ) = None
    sleep: SleepSettings | None = None
    release_s: Annotated[
        float,
        msgspec.Meta(
            ge=0, description="Seconds a start waits at most for GPU memory that the last engine still holds."
        ),
    ] = 10.0
    drain_s: float = 30.0
    stop_grace_s: float = 10.0
    start_timeout_s: float = 300.0
    max_failures: int = 3
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    stable_s: float = 30.0
    watchdog_s: float = 30.0
    slots_dir: str | None = None
    slots_max: Size = Size(8 * 1024**3)
    slots_max_age_s: float = 7 * 24 * 3600.0
    slots_min_tokens: int = 256
    log_lines: int = 2000


class HostLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The values of `gateway.queue` and `gateway.switching` that this file sets for its host; `None` leaves a value to the
    gateways."""

    max_waiting: int | None = None
    max_wait_s: float | None = None
    patience_s: float | None = None
    min_residency_s: float | None = None
