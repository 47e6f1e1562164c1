"""What an engine can do, as its program says: the GPUs it uses, and whether it fits a model to them itself.

Runs the program, and blocks meanwhile.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Final

import anyio
import msgspec

from hostler.supervisor.contract import SupervisorError
from hostler.supervisor.engine_command import EMBEDDED, engine_preset, engine_program, is_embedded, program_of
from hostler.supervisor.llama_program import DRAFT_HEADS, read_program

#: Presets that run folders of safetensors, and those of them whose program shows that they are installed.
FOLDER_ENGINES: Final = (
    "vllm", "sglang", "mlx-lm", "vllm-docker", "vllm-podman", "sglang-docker", "sglang-podman",
)  # fmt: skip
_DETECTABLE: Final = ("vllm", "mlx-lm")

_MIB: Final = 1024**2
#: A device of `llama-server --list-devices`.
_DEVICE: Final = re.compile(r"(\S+): (.+) \((\d+) MiB, (\d+) MiB free\)")


class EngineDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU that an engine can use. Sizes in bytes."""

    name: str
    model: str
    total: int
    free: int


class EngineAbilities(msgspec.Struct, frozen=True, kw_only=True):
    """`knows_devices`: `devices` are all that it uses, even if there are none. `fits`: it chooses by itself how many layers
    go on its devices. `draft_heads` are the heads that it takes as a draft, as values of `--spec-type`."""

    program: tuple[str, ...]
    devices: tuple[EngineDevice, ...] = ()
    knows_devices: bool = False
    fits: bool = False
    draft_heads: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The engine as `supervisor.engine` names it."""
        return EMBEDDED if is_embedded(self.program) else shlex.join(self.program)


def gguf_engine(engine: str | None) -> str | None:
    """The engine for GGUF files: the given one, or what is installed if that one takes none."""
    return None if engine in FOLDER_ENGINES else engine


def folder_engine(engine: str | None) -> str | None:
    """The engine for folders of safetensors: the given one if it is of that kind, else one that is installed, else `None`."""
    if engine in FOLDER_ENGINES:
        return engine
    return next((name for name in _DETECTABLE if _is_installed(name)), None)


def _is_installed(name: str) -> bool:
    preset = engine_preset(name)
    try:
        return preset is not None and bool(program_of(preset))
    except SupervisorError:
        return False


def read_abilities(engine: str | None) -> EngineAbilities:
    """The abilities of an engine, given like `supervisor.engine`. Not for a thread with an event loop.

    Raises `SupervisorError` if it is not installed. A program that does not answer, or is not llama.cpp's, has none.
    """
    preset = engine_preset(engine)
    if preset is not None and not preset.llama_server:
        return EngineAbilities(program=program_of(preset))
    program = engine_program(engine)
    if is_embedded(program):
        return EngineAbilities(program=program, knows_devices=True, draft_heads=frozenset(DRAFT_HEADS))
    answer = anyio.run(read_program, program, os.environ)
    options = answer.options or frozenset()
    devices = (_DEVICE.fullmatch(line) for line in answer.devices)
    return EngineAbilities(
        program=program,
        devices=tuple(
            EngineDevice(name=match[1], model=match[2], total=int(match[3]) * _MIB, free=int(match[4]) * _MIB)
            for match in devices
            if match is not None
        ),
        knows_devices="--list-devices" in options,
        fits="--fit" in options,
        draft_heads=answer.draft_heads,
    )
