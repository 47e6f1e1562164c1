"""What keeps a valid configuration from running, found before anything is started: addresses, secrets, engines, files."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from hostler.gateway.address_conflicts import address_mistakes
from hostler.gateway.auth.bind_policy import is_loopback, key_mistakes
from hostler.gateway.backends.registry import build_endpoint
from hostler.gateway.checked_config import FindMistakes
from hostler.gateway.cluster_settings import MISSING_CLUSTER_EXTRA, ClusterSettings
from hostler.gateway.config import ConfigError, Configuration, secret
from hostler.gateway.engine_files import argument_mistake, file_mistake, program_mistake
from hostler.gateway.gateway_settings import MISSING_TRACING_EXTRA
from hostler.gateway.host_address import joins_cluster
from hostler.gateway.settings import LOCAL, Settings, parse_address
from hostler.profiles.fetch import cached
from hostler.profiles.gguf import GGUFError, read_facts
from hostler.profiles.schema import Profile, is_device_name
from hostler.profiles.sources import source_of
from hostler.supervisor.config import TLSSettings
from hostler.supervisor.contract import SupervisorError
from hostler.supervisor.engine_command import engine_of, is_embedded, program_of, reads_gguf
from hostler.supervisor.engine_port import parse_port_range
from hostler.supervisor.tls import CertificateError, ServerCertificate, pinned_context

Command = Literal["up", "gateway", "supervisor"]


def startup_check(command: Command) -> FindMistakes:
    """Finds what keeps `command` from running. Blocks."""
    return partial(_mistakes, command)


def _mistakes(command: Command, configuration: Configuration) -> list[str]:
    found: list[str] = []
    if command != "supervisor":
        found += _gateway_mistakes(configuration, has_supervisor=command == "up")
    if command == "gateway" and not (configuration.settings.backends or joins_cluster(configuration.settings)):
        found.append("no backends are configured; add `backends:`, or run `hostler up`")
    if command == "supervisor":
        found += supervisor_mistakes(configuration)
    if command != "gateway":
        engines = engine_mistakes(configuration)
        others = command == "up" and configuration.settings.backends
        # Other profiles, or other backends, can still answer.
        if not others and len(engines) == len(configuration.profiles):
            found += dict.fromkeys(engines.values())
        found += _port_mistakes(configuration)
        found += _device_mistakes(configuration)
    return found


def all_mistakes(configuration: Configuration) -> list[str]:
    """Everything that could not run, whichever command is given. Blocks: model files are read."""
    settings = configuration.settings
    runs_models = not (configuration.shipped and settings.backends)
    found = _gateway_mistakes(configuration, has_supervisor=True)
    found += connection_mistakes(settings)
    found += address_mistakes(settings, _engine_ports(settings))
    found += dict.fromkeys(each for each in supervisor_mistakes(configuration) if each not in found)
    if runs_models:
        found += dict.fromkeys(engine_mistakes(configuration).values())
        found += gpu_mistakes(configuration)
        found += _port_mistakes(configuration)
        found += _device_mistakes(configuration)
        found += placement_mistakes(configuration)
        for profile in configuration.profiles:
            found += profile_mistakes(profile, needs_gguf=_reads_gguf(profile, configuration))
    return found


def _gateway_mistakes(configuration: Configuration, *, has_supervisor: bool) -> list[str]:
    settings = configuration.settings
    found = list(key_mistakes(settings)) + _tls_mistakes(settings.gateway.tls, "gateway.tls")
    for name, backend in settings.backends.items():
        found += _secret_mistakes(backend.token, backend.token_file, f"backends.{name}.token_file")
        found += _secret_mistakes(backend.api_key, backend.api_key_file, f"backends.{name}.api_key_file")
        if backend.certificate is not None:
            found += _certificate_mistakes(partial(pinned_context, backend.certificate), f"backends.{name}.certificate")
    if LOCAL in (settings.gateway.chain or ()) and not has_supervisor:
        found.append(f"gateway.chain names {LOCAL!r}, but only `hostler up` runs a supervisor of its own")
    if settings.gateway.workers > 1 and not hasattr(socket, "AF_UNIX"):
        found.append(
            "gateway.workers: this system has no Unix sockets, over which processes share their work; remove it, and one "
            "process serves everything"
        )
    if (cluster := settings.cluster) is not None:
        found += _cluster_mistakes(cluster)
    if settings.gateway.tracing.endpoint is not None and importlib.util.find_spec("opentelemetry") is None:
        found.append(MISSING_TRACING_EXTRA)
    return found


def connection_mistakes(settings: Settings) -> Iterator[str]:
    """Why backends could not be reached as the settings and the environment say. Such a backend keeps only itself from
    serving."""
    from hostler.gateway.backends.httpx_transport import connection_problem

    for name, backend in settings.backends.items():
        if backend.kind == "supervisor":
            continue
        try:
            problem = connection_problem(build_endpoint(name, backend), direct=backend.is_direct)
        except ConfigError:
            continue  # its secrets are missing, which is reported elsewhere
        if problem is not None:
            yield f"backends.{name}: {problem}"


def supervisor_mistakes(configuration: Configuration) -> list[str]:
    """What keeps the supervisor's own interface from running."""
    settings = configuration.settings.supervisor
    found = _secret_mistakes(settings.token, settings.token_file, "supervisor.token_file")
    found += _tls_mistakes(settings.tls, "supervisor.tls")
    host, port = parse_address(settings.listen)
    cluster, joins = configuration.settings.cluster, joins_cluster(configuration.settings)
    if settings.token is None and settings.token_file is None and not joins and not is_loopback(host):
        found.append(without_token(host, port))
    if cluster is not None and joins:
        found += _cluster_mistakes(cluster)
    return found


def _cluster_mistakes(cluster: ClusterSettings) -> list[str]:
    found = _secret_mistakes(cluster.token, cluster.token_file, "cluster.token_file")
    if importlib.util.find_spec("redis") is None:
        found.append(MISSING_CLUSTER_EXTRA)
    return found


def without_token(host: str, port: int) -> str:
    """Why a supervisor does not listen there."""
    return (
        f"supervisor.listen: refusing to listen on {host}:{port} without a token, because other machines can reach it; "
        "set supervisor.token (e.g. ${env:HOSTLER_SUPERVISOR_TOKEN}), or listen on 127.0.0.1"
    )


def _secret_mistakes(value: str | None, file: str | None, where: str) -> list[str]:
    try:
        secret(value, file, where)
    except ConfigError as error:
        return list(error.mistakes)
    return []


def _tls_mistakes(settings: TLSSettings | None, where: str) -> list[str]:
    if settings is None:
        return []
    return _certificate_mistakes(partial(ServerCertificate, settings.cert, settings.key), where)


def _certificate_mistakes(load: Callable[[], object], where: str) -> list[str]:
    try:
        load()
    except CertificateError as error:
        return [f"{where}: {error}"]
    return []


def _engine_ports(settings: Settings) -> range | None:
    try:
        return parse_port_range(settings.supervisor.engine_ports)
    except ValueError:
        return None  # reported as such


def _port_mistakes(configuration: Configuration) -> list[str]:
    text = configuration.settings.supervisor.engine_ports
    try:
        parse_port_range(text)
    except ValueError:
        return [
            f"supervisor.engine_ports: {text!r} is not a range of ports: expected first-last, for example 8100-8199"
        ]
    return []


def _device_mistakes(configuration: Configuration) -> list[str]:
    return [
        f"supervisor.devices.{name}: is not a device: they are gpu0, gpu1 and so on"
        for name in configuration.settings.supervisor.devices
        if not is_device_name(name)
    ]


def placement_mistakes(configuration: Configuration) -> list[str]:
    """What rules about loaded models refer to and does not exist. None of it keeps models from running."""
    settings = configuration.settings.supervisor
    known = [profile.name for profile in configuration.profiles]
    named = [(f"supervisor.groups.{name}", members) for name, members in settings.groups.items()]
    named += [(f"supervisor.sets[{index}]", members) for index, members in enumerate(settings.sets)]
    found = [
        f"{where}: {member!r} is not a profile; profiles are: {', '.join(known)}"
        for where, members in named
        for member in members
        if member not in known
    ]
    if settings.return_to_default_s is not None and not any(profile.default for profile in configuration.profiles):
        found.append("supervisor.return_to_default_s: there is no default profile; set `default: true` in one of them")
    return found


def engine_mistakes(configuration: Configuration) -> dict[str, str]:
    """Profiles whose engine is not installed, and why."""
    found = {}
    for profile in configuration.profiles:
        where = "supervisor.engine" if profile.engine is None else f"profiles.{profile.name}.engine"
        try:
            words = program_of(engine_of(profile, configuration.settings.supervisor))
            if (mistake := program_mistake(words[0])) is not None:
                found[profile.name] = f"{where}: {mistake}"
        except SupervisorError as error:
            found[profile.name] = f"{where}: {error.failure.message}"
        except ValueError as error:  # an open quote
            found[profile.name] = f"{where}: {error}"
    return found


def gpu_mistakes(configuration: Configuration) -> Iterator[str]:
    """Profiles that want a GPU from the embedded engine, which has none."""
    for profile in configuration.profiles:
        if profile.gpu_layers in (None, 0, "auto"):
            continue
        try:
            words = program_of(engine_of(profile, configuration.settings.supervisor))
        except (SupervisorError, ValueError):
            continue  # reported as such
        if is_embedded(words):
            yield (
                f"profiles.{profile.name}.gpu_layers: the embedded engine runs on the CPU only; install a llama-server "
                "built for your GPU (see docs/engines.md), or remove gpu_layers"
            )


def _reads_gguf(profile: Profile, configuration: Configuration) -> bool:
    try:
        return reads_gguf(engine_of(profile, configuration.settings.supervisor))
    except ValueError:  # reported as such
        return False


def profile_mistakes(profile: Profile, *, needs_gguf: bool) -> Iterator[str]:
    """What is wrong with a profile's files, as far as they are on this machine. Blocks.

    `needs_gguf`: its engine certainly loads GGUF files only.
    """
    where = f"profiles.{profile.name}"
    is_llama = profile.definition is None or profile.definition.llama_server
    path = cached(profile)
    if path is None and source_of(profile.model).kind == "path":
        path = Path(profile.model)
    if path is not None and (is_llama or not path.exists()):
        try:
            read_facts(path)
        except GGUFError as error:
            # Engines other than llama.cpp have formats of their own.
            if error.kind == "file_missing" or path.suffix.lower() == ".gguf" or needs_gguf:
                yield f"{where}.model: {error}"
    for key, file in (("mmproj", profile.mmproj), ("draft", profile.draft)):
        if file and (mistake := file_mistake(file, gguf=is_llama)) is not None:
            yield f"{where}.{key}: {file} {mistake}"
    for name, value in zip(profile.args, profile.args[1:], strict=False):
        if (mistake := argument_mistake(name, value)) is not None:
            yield f"{where}.args: {name} {value} {mistake}"
