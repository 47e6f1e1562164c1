"""The command that starts an engine for a profile: program, arguments, environment, port."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import socket
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from hostler.profiles.file_reading import expanded_path
from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor import context_checkpoints
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import Failure, SupervisorError

#: The longest text that becomes an embedding unless a profile's `batch` is larger: it is processed in one batch.
EMBEDDED_TOKENS: Final = 2048

# Arguments without a value, and the value that they stand for.
_SWITCHES: Final = {"-kvu": "on", "--kv-unified": "on", "-no-kvu": "off", "--no-kv-unified": "off"}


def argument_value(arguments: Sequence[str], *names: str) -> str | None:
    """The value of the argument that has one of `names`, or `None`. The last one wins, as in the engine."""
    found: str | None = None
    for index, word in enumerate(arguments):
        if plain_name(word) not in names:
            continue
        if plain_name(word) in _SWITCHES:
            found = _SWITCHES[plain_name(word)]
        elif index + 1 < len(arguments):
            found = arguments[index + 1]
    return found


def argument_number(arguments: Sequence[str], *names: str) -> int | None:
    """`argument_value` as an integer, or `None` if it is none."""
    try:
        return int(argument_value(arguments, *names) or "")
    except ValueError:
        return None


def batch_size(profile: Profile) -> int:
    """How many tokens the engine takes at a time; for embeddings this also limits the length of a text."""
    return max(profile.batch, min(profile.context, EMBEDDED_TOKENS)) if profile.embeddings else profile.batch


def physical_batch_size(profile: Profile) -> int:
    """How many tokens the engine computes at a time."""
    batch = argument_number(profile.args, "-ub", "--ubatch-size")
    return batch or (batch_size(profile) if profile.embeddings else min(512, profile.batch))


def plain_name(word: str) -> str:
    """An argument's name as it is documented: the engine takes underscores for hyphens, too."""
    return word.replace("_", "-") if word.startswith("--") else word


EMBEDDED: Final = "embedded"

#: Variables that engines do not inherit: they are secrets, or would override the profile.
_NOT_INHERITED: Final = ("HOSTLER_", "LLAMA_ARG_", "LLAMA_API_KEY", "OPENROUTER_API_KEY", "OPENAI_API_KEY")


class EngineCommand(msgspec.Struct, frozen=True, kw_only=True):
    """How to start an engine. Only `environment` holds its key. `context` is what one request gets."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    context: int = 0
    parallel: int = 1


def engine_program(engine: str | None, *, path: str | None = None) -> tuple[str, ...]:
    """The program and its first arguments. `engine` is a command line or `embedded`; `None` takes what is installed.

    Raises `SupervisorError` (`engine_missing`). `path` replaces the PATH.
    """
    if engine is None:
        found = shutil.which("llama-server", path=path)
        if found:
            return (found,)
        if embedded_is_installed():
            return _embedded()
        raise _missing("no engine is installed")
    if engine == EMBEDDED:
        if embedded_is_installed():
            return _embedded()
        raise _missing("the embedded engine is not installed")
    words = shlex.split(engine)
    program = shutil.which(str(expanded_path(words[0])), path=path) if words else None
    if program is None:
        raise _missing(f'the engine "{engine}" does not exist or is not executable')
    return (program, *words[1:])


def is_embedded(program: Sequence[str]) -> bool:
    """Whether this is the embedded engine, which uses no GPU."""
    return tuple(program) == _embedded()


def reads_gguf(engine: str | None) -> bool:
    """Whether the engine of that command line is certainly llama.cpp's, which loads GGUF files only. Blocks briefly."""
    if engine == EMBEDDED:
        return True
    try:
        program = Path(engine_program(engine)[0])
        if engine is not None and not program.name.startswith("llama-server"):
            return False
        with program.open("rb") as file:
            return file.read(2) != b"#!"  # a script may do anything
    except (SupervisorError, ValueError, OSError):
        return False


def embedded_is_installed() -> bool:
    """Whether the `[embedded]` extra is installed. Does not import it: that would load 34 MB."""
    return importlib.util.find_spec("xllamacpp") is not None


def build_command(
    profile: Profile, settings: SupervisorSettings, *, file: Path, host: str, port: int, key: str,
    inherited: Mapping[str, str], facts: ModelFacts | None = None, visible: Mapping[str, str] | None = None,
) -> EngineCommand:  # fmt: skip
    """The command that serves `profile` from `file` at `host:port`, to clients with `key` only. `facts`: the file's header;
    `visible`: the variables that hide GPUs.

    A profile's context is what one request gets, so the engine gets that times `parallel`. The profile's own arguments
    come last: in the engine the last one wins.
    """
    arguments = [*engine_program(profile.engine or settings.engine, path=inherited.get("PATH"))]
    arguments += ["-m", str(file), "--alias", profile.name, "--host", host, "--port", str(port)]
    arguments += ["-c", str(profile.context * profile.parallel), "-np", str(profile.parallel)]
    arguments += ["-b", str(batch_size(profile)), "--cache-ram", str(profile.cache_ram_mib)]
    if profile.threads is not None:
        arguments += ["-t", str(profile.threads)]
    if profile.gpu_layers is not None:
        arguments += ["-ngl", str(profile.gpu_layers)]
    if settings.slots_dir is not None:
        arguments += ["--slot-save-path", settings.slots_dir]
        if (
            facts is not None
            and context_checkpoints.needs_checkpoints(facts)
            and not _chooses_checkpoints(profile, arguments)
        ):
            arguments += ["--ctx-checkpoints", str(context_checkpoints.DEFAULT_COUNT)]
    if profile.embeddings:
        arguments += ["--embeddings", "-ub", str(physical_batch_size(profile))]
        if not _has_pooling_type(facts):
            # Without pooling, as in chat models, the engine gives no embeddings in OpenAI's protocol.
            arguments += ["--pooling", "mean"]
    arguments += ["--metrics", "--no-ui", "--offline", "--cors-origins", "localhost", "--sse-ping-interval", "5"]
    arguments += profile.args
    environment = {
        name: value
        for name, value in inherited.items()
        # The token may come from a variable of any name.
        if not name.startswith(_NOT_INHERITED) and (not settings.token or value != settings.token)
    }
    environment.update(visible or {})
    environment.update(profile.env)
    environment["LLAMA_API_KEY"] = key
    # Makes the engine report its state on stdout and exit at the end of its stdin. The number itself is not used.
    environment["LLAMA_SERVER_ROUTER_PORT"] = "1"
    return EngineCommand(
        arguments=tuple(arguments), environment=environment, context=profile.context, parallel=profile.parallel
    )


def _chooses_checkpoints(profile: Profile, words: Sequence[str]) -> bool:
    """Whether the engine's own command line or the profile's variables set it; its arguments win anyway."""
    chosen = argument_value(words, *context_checkpoints.ARGUMENTS)
    return chosen is not None or not profile.env.keys().isdisjoint(context_checkpoints.VARIABLES)


def _has_pooling_type(facts: ModelFacts | None) -> bool:
    return facts is not None and any(name.endswith(".pooling_type") for name in facts.metadata)


def _embedded() -> tuple[str, ...]:
    return (sys.executable, "-m", "hostler.supervisor.embedded.server")


def _missing(what: str) -> SupervisorError:
    message = f"{what}: pip install 'hostler[embedded]', or put llama-server on the PATH"
    return SupervisorError(Failure(kind="engine_missing", message=message))


def parse_port_range(text: str | None) -> range | None:
    """Parses `8100-8199` or `8100`; `None` means any port. Raises `ValueError`."""
    if text is None:
        return None
    first, _, last = text.partition("-")
    ports = range(int(first), int(last or first) + 1)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise ValueError(f'"{text}" is not a range of ports: expected first-last, for example 8100-8199')
    return ports


def free_port(host: str, ports: range | None, *, avoid: Collection[int] = ()) -> int:
    """A port on which nothing listens now. It may be taken before it is used: the caller has to retry then.

    Raises `SupervisorError` (`port_taken`) if the whole range is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports if ports is not None else (0,) * 8:
        if port in avoid:
            continue
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As the engine does: connections of an engine that has just exited do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                last = error
                continue
            found: int = probe.getsockname()[1]
            if found not in avoid:
                return found
    where = f"engine_ports {ports[0]}-{ports[-1]}" if ports is not None else f"engine_host {host}"
    reason = f" ({last.strerror})" if "last" in locals() else ""
    raise SupervisorError(Failure(kind="port_taken", message=f"no free port in {where}{reason}"))


def engine_profile(profile: Profile) -> Profile:
    """The part of a profile that the command depends on: profiles that are equal in it can share a running engine."""
    return msgspec.structs.replace(
        profile, aliases=(), description="", ttl_s=None, start_timeout_s=None, stop_grace_s=None, drain_s=None,
        memory=None, pinned=False, preload=False, evict_cost=None, max_concurrent=None, max_waiting=None,
        first_byte_s=None, between_bytes_s=None, max_answer_s=None, listed=True, default=False, chain=None,
        local_only=False, request=None,
    )  # fmt: skip
