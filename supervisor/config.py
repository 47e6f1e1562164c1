"""The `supervisor:` section of the configuration file."""

from __future__ import annotations

import msgspec

from hostler.profiles.yaml_config import Size


class TLSSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server's certificate (with those that lead to its issuer) and its key, in PEM files that are read again when they
    change."""

    cert: str
    key: str


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How engines run on this host. Times in seconds, sizes in bytes.

    `engine` is a command or a path, or `embedded` for the one of the `[embedded]` extra; `None` takes `llama-server`
    from the PATH if it is installed, else the embedded one. Engines listen on `engine_host` (`None`: the address the
    supervisor is bound to) on ports of `engine_ports` (`first-last`; `None`: any free port). With `exclusive` one model
    runs at a time; with `memory_budget` several do, as long as they fit.
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
