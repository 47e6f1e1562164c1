"""The llama-servers that a configuration and this machine know, and which profiles use each. Runs them, to ask."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import msgspec

from hostler.profiles.engines import Engine
from hostler.profiles.file_reading import real_path
from hostler.profiles.schema import Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import SupervisorError
from hostler.supervisor.engine_builds import EngineBuild
from hostler.supervisor.engine_command import (
    EMBEDDED,
    embedded_is_installed,
    engine_of,
    is_embedded,
    llama_server,
    program_of,
)
from hostler.supervisor.llama_program import LlamaProgram, read_program

_ON_PATH: Final = "llama-server"


class KnownEngine(msgspec.Struct, frozen=True, kw_only=True):
    """A llama-server. `name` is how the configuration names it, `used_by` the profiles that it runs; `default`: it runs
    those that name no engine. `failure` says why it cannot be used."""

    name: str
    program: tuple[str, ...] = ()
    build: str = ""
    devices: tuple[str, ...] = ()
    used_by: tuple[str, ...] = ()
    default: bool = False
    failure: str = ""

    @property
    def command(self) -> str:
        """Its command line; `embedded` for the embedded engine."""
        return EMBEDDED if is_embedded(self.program) else shlex.join(self.program)


def known_engines(
    settings: SupervisorSettings, profiles: Sequence[Profile], engines: Mapping[str, Engine],
    builds: Iterable[EngineBuild], path: str | None = None,
) -> list[KnownEngine]:  # fmt: skip
    """All of them, the default one first. `engines` are those that the configuration defines. `path` replaces the PATH.

    Blocks for some seconds at most: each is asked what it can do.
    """
    return anyio.run(_read_all, _collect(settings, profiles, engines, builds, path))


def _collect(
    settings: SupervisorSettings, profiles: Sequence[Profile], engines: Mapping[str, Engine],
    builds: Iterable[EngineBuild], path: str | None,
) -> list[KnownEngine]:  # fmt: skip
    """All of them, each once, as far as they are known without running them."""
    default = engine_of(Profile(name="", model=""), settings)
    if settings.engine is not None:
        default = engines.get(settings.engine, default)
    used: dict[str, list[str]] = {}
    named: dict[str, Engine] = {}
    for profile in profiles:
        engine = engine_of(profile, settings)
        if engine.llama_server:
            named.setdefault(engine.name, engine)
            used.setdefault(engine.name, []).append(profile.name)
    # The first name of a program counts: those that can be remembered come before command lines.
    candidates = [
        *((name, engine) for name, engine in engines.items() if engine.llama_server),
        *_installed(path),
        *((build.name, llama_server(shlex.quote(str(build.program)))) for build in builds),
        *([(default.name, default)] if default.llama_server else []),
        *named.items(),
    ]
    found: dict[object, KnownEngine] = {}
    for name, engine in candidates:
        located = _located(name, engine, path)
        known = found.setdefault(_identity(located), located)
        found[_identity(located)] = msgspec.structs.replace(
            known,
            used_by=(*known.used_by, *used.pop(engine.name, ())),
            default=known.default or engine is default,
        )
    return list(found.values())


def _installed(path: str | None) -> Iterator[tuple[str, Engine]]:
    """What is on the PATH, also what others there hide, and the embedded engine."""
    folders = (os.environ.get("PATH", os.defpath) if path is None else path).split(os.pathsep)
    places = (shutil.which(_ON_PATH, path=folder) for folder in folders if folder)
    for index, place in enumerate(dict.fromkeys(each for each in places if each)):
        yield (_ON_PATH if index == 0 else place), llama_server(shlex.quote(place))
    if embedded_is_installed():
        yield EMBEDDED, llama_server(EMBEDDED)


def _located(name: str, engine: Engine, path: str | None) -> KnownEngine:
    try:
        return KnownEngine(name=name, program=program_of(engine, path=path))
    except (SupervisorError, ValueError) as error:
        message = error.failure.message if isinstance(error, SupervisorError) else str(error)
        return KnownEngine(name=name, failure=message)


def _identity(engine: KnownEngine) -> object:
    if not engine.program:
        return engine.name
    program, *arguments = engine.program
    return (str(real_path(Path(program))), *arguments)


async def _read_all(engines: list[KnownEngine]) -> list[KnownEngine]:
    read = dict(enumerate(engines))

    async def ask(index: int) -> None:
        read[index] = _with(engines[index], await read_program(engines[index].program, os.environ))

    async with anyio.create_task_group() as tasks:
        for index, engine in enumerate(engines):
            if is_embedded(engine.program):
                version = importlib.metadata.version("xllamacpp")
                read[index] = msgspec.structs.replace(engine, build=f"xllamacpp {version}")
            elif engine.program:
                tasks.start_soon(ask, index)
    return sorted(read.values(), key=lambda each: not each.default)


def _with(engine: KnownEngine, read: LlamaProgram) -> KnownEngine:
    return msgspec.structs.replace(engine, build=read.build, devices=read.devices, failure=read.failure)
