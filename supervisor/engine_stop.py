"""Stops an engine by its signal or its command, and removes what it may leave behind, such as a container."""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Callable, Mapping
from typing import Final

import anyio

from hostler.profiles.engines import StopSignal
from hostler.supervisor.child import FORCED_END
from hostler.supervisor.embedded.server import EXIT_COMMAND
from hostler.supervisor.engine_command import EngineCommand
from hostler.supervisor.generation import Generation

#: How long a command that cleans up may take, in seconds.
CLEAN_UP_S: Final = 20.0

logger = logging.getLogger(__name__)

AddLine = Callable[[str], None]


async def stop_engine(current: Generation, grace_s: float, log: AddLine) -> None:
    """Stop the engine as it is configured and kill what is left of it after `grace_s`; at once with 0."""
    child, command = current.child, current.command
    assert child is not None
    assert command is not None
    exit_line = EXIT_COMMAND if current.readiness.reported_ready and grace_s > 0 else None
    stop_signal: int | None = signal_number(command.engine.stop.signal)
    asked = bool(command.stop) and grace_s > 0 and child.returncode is None
    if asked and await _run(command.stop, command.environment, grace_s, log):
        stop_signal = None
    await child.end(grace_s, exit_line=exit_line, stop_signal=stop_signal)
    await clean_up(command, log)


def signal_number(name: StopSignal) -> int:
    """The number of a signal; Windows has only some, and ends a process in one way."""
    if name == "KILL":
        return FORCED_END
    return int(getattr(signal, f"SIG{name}", signal.SIGTERM))


async def clean_up(command: EngineCommand, log: AddLine) -> None:
    """Run the engine's `cleanup`, if it has one. It may fail: most often nothing is left."""
    if command.cleanup:
        await run_cleanup(command.cleanup, command.environment, log)


async def run_cleanup(arguments: tuple[str, ...], environment: Mapping[str, str], log: AddLine) -> None:
    """Run a `cleanup` command of an engine that does not run."""
    await _run(arguments, environment, CLEAN_UP_S, log, quiet=True)


async def _run(
    arguments: tuple[str, ...], environment: Mapping[str, str], limit_s: float, log: AddLine, *, quiet: bool = False
) -> bool:
    """Run a command; whether it succeeded in time. Its output goes to the engine's log if it failed."""
    try:
        with anyio.fail_after(limit_s):
            done = await anyio.run_process(
                arguments, env=dict(environment), stdin=subprocess.DEVNULL, check=False, stderr=subprocess.STDOUT
            )
    except (OSError, TimeoutError) as error:
        log(f"{arguments[0]}: {error.strerror or 'did not end in time'}")
        return False
    if done.returncode != 0 and not quiet:
        for line in done.stdout.decode(errors="replace").splitlines()[-5:]:
            log(f"{arguments[0]}: {line}")
    return done.returncode == 0
