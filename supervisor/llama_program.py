"""What a llama-server binary can do: its options, its build and its devices, read once from the program itself."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from hostler.supervisor.child import Child
from hostler.supervisor.contract import EngineProgram

#: How long a program may take to print its help, in seconds. Builds for GPUs look for devices first.
LIMIT_S: Final = 10.0

_OPTION_LINE: Final = re.compile(r"^\s{0,2}(-.*)$", re.MULTILINE)
_OPTION: Final = re.compile(r"(?<![\w-])(--?[a-zA-Z][\w-]*)")
_BUILD: Final = re.compile(r"^version: (.+)$", re.MULTILINE)
_DEVICE: Final = re.compile(r"^ {2}(\w+: .+)$", re.MULTILINE)

#: The options without which a program is no llama-server: the oldest ones had them.
REQUIRED: Final = frozenset({"-m", "--host", "--port", "-c"})

logger = logging.getLogger(__name__)


#: Heads that guess from the state of a model, as values of `--spec-type`.
DRAFT_HEADS: Final = ("draft-mtp", "draft-eagle3")


class LlamaProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A llama-server. `options` is `None` where its help could not be read, and `failure` says why: then it is taken for a
    current one.

    `draft_heads` are those of `DRAFT_HEADS` that it takes as a draft.
    """

    options: frozenset[str] | None = None
    build: str = ""
    devices: tuple[str, ...] = ()
    draft_heads: frozenset[str] = frozenset()
    failure: str = ""


class LlamaPrograms:
    """Reads each program once, until its file changes."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], LlamaProgram] = {}
        self._latest: dict[tuple[str, ...], LlamaProgram] = {}
        self._reported: set[tuple[str, str]] = set()

    async def read(self, program: tuple[str, ...], environment: Mapping[str, str]) -> LlamaProgram:
        """The program with these first arguments. Never raises."""
        key = await anyio.to_thread.run_sync(_identity, program)
        if key not in self._known:
            self._known[key] = await read_program(program, environment)
        program_now = self._latest[program] = self._known[key]
        return program_now

    def known(self) -> tuple[EngineProgram, ...]:
        """The programs whose help could be read, and what each lacks."""
        return tuple(
            EngineProgram(
                path=words[0],
                build=program.build,
                devices=program.devices,
                lacks=tuple(sorted(lost for path, lost in self._reported if path == words[0])),
            )
            for words, program in self._latest.items()
            if program.options is not None
        )

    def newly_lost(self, program: Sequence[str], lost: Sequence[str]) -> list[str]:
        """Those of the losses that were not returned for this program before."""
        fresh = [each for each in lost if (program[0], each) not in self._reported]
        self._reported.update((program[0], each) for each in fresh)
        return fresh


async def read_program(
    program: tuple[str, ...], environment: Mapping[str, str], limit_s: float = LIMIT_S
) -> LlamaProgram:
    """Run the program up to three times, for `limit_s` at most each. Never raises."""
    shown = await _run([*program, "--help"], environment, limit_s)
    options = parse_options(shown.text)
    if options is None:
        return LlamaProgram(failure=shown.failure or "its --help is not that of a llama-server")

    async def output(option: str) -> str:
        return (await _run([*program, option], environment, limit_s)).text if option in options else ""

    build = _BUILD.search(await output("--version"))
    listed = await output("--list-devices")
    return LlamaProgram(
        options=options,
        build=build[1].strip() if build else "",
        devices=parse_devices(listed),
        draft_heads=frozenset(kind for kind in DRAFT_HEADS if kind in shown.text),
    )


def parse_options(text: str) -> frozenset[str] | None:
    """The options in a help text; `None` if it is not that of a llama-server."""
    found = frozenset(option for line in _OPTION_LINE.findall(text) for option in _options_of(line))
    return found if found >= REQUIRED else None


def parse_devices(text: str) -> tuple[str, ...]:
    """The devices in the output of `--list-devices`."""
    return tuple(_DEVICE.findall(text.partition("Available devices:")[2]))


def _options_of(line: str) -> list[str]:
    """The spellings at the start of a line, before the description."""
    return _OPTION.findall(re.split(r"\s{2,}(?![-\s])", line, maxsplit=1)[0])


class _Run(msgspec.Struct, frozen=True):
    """What a program printed, and why it failed, if it did."""

    text: str
    failure: str = ""


async def _run(command: Sequence[str], environment: Mapping[str, str], limit_s: float) -> _Run:
    """Run a program, and ignore its output if it does not end in time. Like an engine, it survives neither cancellation nor
    the death of this process."""
    lines: list[str] = []
    try:
        child = Child.start(command, environment, lambda _, line: lines.append(line))
    except (OSError, ValueError) as error:
        return _Run("", f"it cannot be started: {getattr(error, 'strerror', None) or error}")
    try:
        with anyio.move_on_after(limit_s):
            await child.exited.wait()
            return _Run("\n".join(lines) + "\n", _failure(child.returncode, lines))
        logger.warning("%s %s did not end within %g s; its output is ignored", command[0], command[-1], limit_s)
        return _Run("", f"{command[-1]} did not end within {limit_s:g} s")
    finally:
        await child.end(0)


def _failure(status: int | None, lines: Sequence[str]) -> str:
    """Why a program has failed that ended with this status; empty if it has not."""
    if not status:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    if status > 0:
        return f"it ended with status {status}: {last}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = "it is built for another processor" if name == "SIGILL" else last
    return f"it was ended by {name}: {hint}"


def _identity(program: tuple[str, ...]) -> tuple[object, ...]:
    """Changes when a file of the command line does. Blocks."""
    found: list[object] = [program]
    for word in program:
        try:
            status = Path(word).stat()
            found.append((status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            continue
    return tuple(found)
