"""A profile as a command line: which engine, which arguments, which environment. Starts nothing."""

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

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import Failure, SupervisorError

#: The longest text that becomes an embedding unless a profile's `batch` says more: it has to be read in one go.
EMBEDDED_TOKENS = 2048

# Words that take no value and say the same as a word with one.
_SWITCHES = {"-kvu": "on", "--kv-unified": "on", "-no-kvu": "off", "--no-kv-unified": "off"}


def argument_value(arguments: Sequence[str], *names: str) -> str | None:
    """The value of the argument that goes by one of `names`; the last one wins, as with the engine. `None`: not said."""
    found: str | None = None
    for index, word in enumerate(arguments):
        if _plain(word) not in names:
            continue
        if _plain(word) in _SWITCHES:
            found = _SWITCHES[_plain(word)]
        elif index + 1 < len(arguments):
            found = arguments[index + 1]
    return found


def argument_number(arguments: Sequence[str], *names: str) -> int | None:
    """`argument_value` as a whole number, or `None` if it is none."""
    try:
        return int(argument_value(arguments, *names) or "")
    except ValueError:
        return None


def batch_size(profile: Profile) -> int:
    """How many tokens its engine reads in one go; for embeddings that is also how long a text may be."""
    return max(profile.batch, min(profile.context, EMBEDDED_TOKENS)) if profile.embeddings else profile.batch


def physical_batch_size(profile: Profile) -> int:
    """How many of them are worked on at the same time."""
    batch = argument_number(profile.args, "-ub", "--ubatch-size")
    return batch or (batch_size(profile) if profile.embeddings else min(512, profile.batch))


def _plain(word: str) -> str:
    return word.replace("_", "-") if word.startswith("--") else word


EMBEDDED: Final = "embedded"

#: Taken out of the environment that engines inherit: they are ours, or would change what a profile says.
_NOT_INHERITED: Final = ("HOSTLER_", "LLAMA_ARG_", "LLAMA_API_KEY", "OPENROUTER_API_KEY", "OPENAI_API_KEY")


class EngineCommand(msgspec.Struct, frozen=True, kw_only=True):
    """What to start. `environment` holds the key, `arguments` never does. `context` is what one request gets."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    context: int = 0
    parallel: int = 1


def engine_program(engine: str | None, *, path: str | None = None) -> tuple[str, ...]:
    """The program with its own first arguments: a command line, `embedded`, or the best that is installed.

    Raises `SupervisorError` with `engine_missing` that says how to get one. `path` replaces the PATH.
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
    program = shutil.which(str(Path(words[0]).expanduser()), path=path) if words else None
    if program is None:
        raise _missing(f'the engine "{engine}" is not there or not executable')
    return (program, *words[1:])


def embedded_is_installed() -> bool:
    """Whether the `[embedded]` extra is there. Looks, without importing it: that would load 34 MB."""
    return importlib.util.find_spec("xllamacpp") is not None


def build_command(
    profile: Profile, settings: SupervisorSettings, *, file: Path, host: str, port: int, key: str,
    inherited: Mapping[str, str], facts: ModelFacts | None = None,
) -> EngineCommand:  # fmt: skip
    """The command that serves `profile` from `file`, which says `facts`, at `host:port`, open to holders of `key` only.

    A profile's context is what one request gets, so the engine is asked for that times `parallel`. Its own arguments
    come last: the engine lets the last one of a name win.
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
    if profile.embeddings:
        arguments += ["--embeddings", "-ub", str(physical_batch_size(profile))]
        if not _says_how_to_pool(facts):
            # A chat model's file does not, and an engine that is not told gives no embeddings by OpenAI's protocol.
            arguments += ["--pooling", "mean"]
    arguments += ["--metrics", "--no-ui", "--offline", "--cors-origins", "localhost", "--sse-ping-interval", "5"]
    arguments += profile.args
    environment = {
        name: value
        for name, value in inherited.items()
        # Whatever the variable is called that our token was taken from.
        if not name.startswith(_NOT_INHERITED) and (not settings.token or value != settings.token)
    }
    environment.update(profile.env)
    environment["LLAMA_API_KEY"] = key
    # The engine then tells its state on stdout and ends when its stdin does. The number itself is not used.
    environment["LLAMA_SERVER_ROUTER_PORT"] = "1"
    return EngineCommand(
        arguments=tuple(arguments), environment=environment, context=profile.context, parallel=profile.parallel
    )


def _says_how_to_pool(facts: ModelFacts | None) -> bool:
    return facts is not None and any(name.endswith(".pooling_type") for name in facts.metadata)


def _embedded() -> tuple[str, ...]:
    return (sys.executable, "-m", "hostler.supervisor.embedded.server")


def _missing(what: str) -> SupervisorError:
    message = f"{what}: pip install 'hostler[embedded]', or put llama-server on the PATH"
    return SupervisorError(Failure(kind="engine_missing", message=message))


def parse_port_range(text: str | None) -> range | None:
    """`8100-8199` or `8100`; `None` means any port. Raises `ValueError`."""
    if text is None:
        return None
    first, _, last = text.partition("-")
    ports = range(int(first), int(last or first) + 1)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise ValueError(f'"{text}" is no range of ports: expected first-last, for example 8100-8199')
    return ports


def free_port(host: str, ports: range | None, *, avoid: Collection[int] = ()) -> int:
    """A port on which nothing listens now. It may be taken a moment later: whoever uses it must cope with that.

    Raises `SupervisorError` with `port_taken` if the whole range is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports if ports is not None else (0,) * 8:
        if port in avoid:
            continue
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As the engine itself does: connections of an engine that has just ended do not matter.
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
