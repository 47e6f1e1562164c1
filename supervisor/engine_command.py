"""The command that starts an engine for a profile: program, arguments, environment, and how it is stopped."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from hostler.profiles.engine_presets import PRESETS
from hostler.profiles.engines import Engine, EngineTable, ReadyRules, StopRules, resolve_engines
from hostler.profiles.file_reading import home_path
from hostler.profiles.schema import ModelFacts, Profile
from hostler.profiles.sources import source_of
from hostler.profiles.templates import expand, expand_text
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import Failure, SupervisorError
from hostler.supervisor.embedded.server import HOLDS, ROUTER_CHILD
from hostler.supervisor.llama_arguments import batch_size, layer_number, llama_arguments

EMBEDDED: Final = "embedded"

#: Variables that engines do not inherit: they are secrets, or would override the profile.
_NOT_INHERITED: Final = ("HOSTLER_", "LLAMA_ARG_", "LLAMA_API_KEY", "OPENROUTER_API_KEY", "OPENAI_API_KEY")

_NOT_IN_CONTAINER_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]+")


class EngineCommand(msgspec.Struct, frozen=True, kw_only=True):
    """How to start and stop an engine. `context` is what one request gets, `model_name` the model's name there.
    `holds`: it can hold before it loads its model.

    Its key is in `environment`, unless the engine takes it as an argument only.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    engine: Engine
    cwd: str | None = None
    context: int = 0
    parallel: int = 1
    model_name: str = ""
    stop: tuple[str, ...] = ()
    cleanup: tuple[str, ...] = ()
    holds: bool = False


def hold(command: EngineCommand) -> EngineCommand:
    """The command of an engine that holds until a line on its standard input says that it may load its model."""
    return msgspec.structs.replace(command, environment={**command.environment, HOLDS: "1"})


def engine_of(profile: Profile, settings: SupervisorSettings) -> Engine:
    """The engine of a profile: as its file defines it, a preset, or a llama-server by its command line.

    Raises `ValueError` for a command line with an open quote.
    """
    if profile.definition is not None:
        return profile.definition
    name = profile.engine if profile.engine is not None else settings.engine
    return _presets().find(name) or llama_server(name)


def engine_preset(name: str | None) -> Engine | None:
    """The preset of this name; `None` if there is none."""
    return _presets().find(name)


@cache
def _presets() -> EngineTable:
    return resolve_engines({}, PRESETS, {}, errors=[])


def llama_server(command: str | None) -> Engine:
    """A llama-server by its command line; `None` takes what is installed. Raises `ValueError` for an open quote."""
    return Engine(
        name=command or "llama-server",
        command=tuple(shlex.split(command)) if command is not None else (),
        llama_server=True,
        ready=ReadyRules(path="/health"),
        protocol="llamacpp",
    )


def command_line(engine: Engine) -> str | None:
    """A llama-server's command line without the options of its profile; `None` for what is installed."""
    return shlex.join(expand(engine.command, {})) or None


def engine_program(engine: str | None, *, path: str | None = None) -> tuple[str, ...]:
    """The program and first arguments of a llama-server. `engine` is a command line or `embedded`.

    `None` takes what is installed. Raises `SupervisorError` (`engine_missing`). `path` replaces the PATH.
    """
    return program_of(llama_server(engine), path=path)


def program_of(engine: Engine, *, path: str | None = None) -> tuple[str, ...]:
    """The engine's program, and the arguments before those of llama-server. Raises `SupervisorError` (`engine_missing`).

    `path` replaces the PATH.
    """
    if not engine.llama_server:
        return (_find_program(engine, path),)
    words = expand(engine.command, {})
    if not words and engine.name == "llama-server":
        found = shutil.which("llama-server", path=path)
        if found:
            return (found,)
        if embedded_is_installed():
            return _embedded()
        raise _missing("no engine is installed")
    if words == (EMBEDDED,):
        if embedded_is_installed():
            return _embedded()
        raise _missing("the embedded engine is not installed")
    program = shutil.which(words[0], path=path) if words else None
    if program is None:
        raise _missing(f'the engine "{engine.name}" does not exist or is not executable')
    return (program, *words[1:])


def _find_program(engine: Engine, path: str | None) -> str:
    """The program of an engine with a command of its own."""
    first = engine.command[0] if engine.command else ""
    word = expand((first if isinstance(first, str) else first[0],), {})[0]
    folder = engine_folder(engine)
    if folder is not None and not folder.is_dir():
        message = f'the working folder {folder} of engine "{engine.name}" does not exist: install it, or set cwd'
        raise SupervisorError(Failure(kind="engine_missing", message=message))
    if folder is not None and "/" in word and not word.startswith("/"):
        word = str(folder / word)
    program = shutil.which(word, path=path)
    if program is None:
        message = f'the engine "{engine.name}" needs the program {word}, which does not exist or is not executable'
        raise SupervisorError(Failure(kind="engine_missing", message=message))
    return program


def engine_folder(engine: Engine) -> Path | None:
    """The engine's working folder; `None` for that of the supervisor."""
    return None if engine.cwd is None else home_path(engine.cwd)


def reads_gguf(engine: Engine) -> bool:
    """Whether the engine is certainly llama.cpp's, which loads GGUF files only. Blocks briefly."""
    if not engine.llama_server:
        return False
    if engine.command == (EMBEDDED,):
        return True
    try:
        program = Path(program_of(engine)[0])
        if engine.command and not program.name.startswith("llama-server"):
            return False
        if not program.is_file():
            return False
        with program.open("rb") as file:
            return file.read(2) != b"#!"  # a script may do anything
    except (SupervisorError, ValueError, OSError):
        return False


def embedded_is_installed() -> bool:
    """Whether the `[embedded]` extra is installed. Does not import it: that would load 34 MB."""
    return importlib.util.find_spec("xllamacpp") is not None


def build_command(
    profile: Profile, settings: SupervisorSettings, *, file: Path | None, host: str, port: int, key: str,
    inherited: Mapping[str, str], facts: ModelFacts | None = None, visible: Mapping[str, str] | None = None,
    known: Collection[str] | None = None,
) -> EngineCommand:  # fmt: skip
    """The command that serves `profile` from `file` at `host:port`, to clients with `key` only. `facts`: the file's header;
    `visible`: the variables that hide GPUs.

    `file` is `None` for a model that the engine loads itself, or for none. `known` are the options of this llama-server,
    `None` for all of the current one. The profile's own arguments come last: in most engines the last one wins.
    Raises `SupervisorError` and `ValueError`.
    """
    engine = engine_of(profile, settings)
    values = _values(profile, file=file, host=host, port=port, key=key, inherited=inherited)
    path = inherited.get("PATH")
    arguments = [*program_of(engine, path=path)]
    holds = is_embedded(tuple(arguments))
    if engine.llama_server:
        assert file is not None, "llama-server needs a model file"
        own, _ = llama_arguments(
            profile, settings, file=file, host=host, port=port, facts=facts, known=known, program=arguments
        )
        arguments += own
    else:
        arguments += expand(engine.command, values)[1:]
    arguments += expand(profile.args, values)
    environment = {**_inherited_environment(inherited, settings), **(visible or {})}
    environment.update({name: expand_text(text, values) for name, text in {**engine.env, **profile.env}.items()})
    if engine.llama_server:
        environment["LLAMA_API_KEY"] = key
        # Makes the engine report its state on stdout and exit at the end of its stdin. The number itself is not used.
        environment[ROUTER_CHILD] = "1"
    folder = engine_folder(engine)
    return EngineCommand(
        arguments=tuple(arguments),
        environment=environment,
        engine=engine,
        cwd=None if folder is None else str(folder),
        context=profile.context,
        parallel=profile.parallel,
        model_name=expand_text(engine.model_name, values),
        stop=expand(engine.stop_command, values),
        cleanup=expand(engine.cleanup, values),
        holds=holds,
    )


def cleanup_command(profile: Profile, settings: SupervisorSettings, inherited: Mapping[str, str]) -> tuple[str, ...]:
    """The command that removes what an earlier start may have left behind; empty if there is none."""
    engine = engine_of(profile, settings)
    return expand(engine.cleanup, _values(profile, file=None, host="", port=0, key="", inherited=inherited))


def _inherited_environment(inherited: Mapping[str, str], settings: SupervisorSettings) -> dict[str, str]:
    return {
        name: value
        for name, value in inherited.items()
        # The token may come from a variable of any name.
        if not name.startswith(_NOT_INHERITED) and (not settings.token or value != settings.token)
    }


def _values(
    profile: Profile, *, file: Path | None, host: str, port: int, key: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The values of a template's variables."""
    source = source_of(profile.model)
    layers = layer_number(profile.gpu_layers)
    folder = "" if file is None else str(file if file.is_dir() else file.parent)
    hub = inherited.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return {
        "host": host,
        "port": str(port),
        "address": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "key": key,
        "name": profile.name,
        "model": source.file if file is None else str(file),
        "folder": folder,
        "parent": "" if file is None else str(file.parent),
        "basename": source.name if file is None else file.name,
        "hub": hub,
        "mmproj": profile.mmproj or "",
        "draft": profile.draft or "",
        "context": str(profile.context),
        "total_context": str(profile.context * profile.parallel),
        "parallel": str(profile.parallel),
        "batch": str(batch_size(profile)),
        "threads": "" if profile.threads is None else str(profile.threads),
        "gpu_layers": "" if layers is None else str(layers),
        "container": "hostler-" + _NOT_IN_CONTAINER_NAMES.sub("-", profile.name),
    }


def _embedded() -> tuple[str, ...]:
    return (sys.executable, "-m", "hostler.supervisor.embedded.server")


def is_embedded(words: tuple[str, ...]) -> bool:
    """Whether this is the program of the embedded engine, as `program_of` returns it."""
    return words == _embedded()


def _missing(what: str) -> SupervisorError:
    message = f"{what}: pip install 'hostler[embedded]', or put llama-server on the PATH"
    return SupervisorError(Failure(kind="engine_missing", message=message))


def engine_profile(profile: Profile) -> Profile:
    """The part of a profile that the command depends on: profiles that are equal in it can share a running engine."""
    definition = profile.definition
    if definition is not None:
        definition = msgspec.structs.replace(
            definition, ready=ReadyRules(), serves=(), capabilities=(), listens="child", stop=StopRules(),
            stop_command=(), cleanup=(), watchdog_s=None,
        )  # fmt: skip
    return msgspec.structs.replace(
        profile, aliases=(), description="", ttl_s=None, start_timeout_s=None, stop_grace_s=None, drain_s=None,
        memory=None, pinned=False, preload=False, evict_cost=None, priority=0, max_concurrent=None, max_waiting=None,
        first_byte_s=None, between_bytes_s=None, max_answer_s=None, metadata={}, progress=None, listed=True, default=False, chain=None,
        local_only=False, request=None, definition=definition,
    )  # fmt: skip
