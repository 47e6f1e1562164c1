"""The output of a vendor's command-line tool, with a time limit."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Final

from hostler.supervisor.devices.reading import DeviceError

#: A tool takes 50 ms to 2 s; one that hangs with its driver must not hold up the others for long.
TIMEOUT_S: Final = 10.0


def command_output(arguments: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> str:
    """What the command prints. Raises `DeviceError` if it fails or takes too long."""
    try:
        result = subprocess.run(
            list(arguments), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{arguments[0]} did not answer within {timeout_s:g} s") from error
    except OSError as error:
        raise DeviceError(f"{arguments[0]}: {error.strerror or error}") from error
    output = result.stdout.decode(errors="replace")
    if result.returncode:
        words = result.stderr.decode(errors="replace").strip() or output.strip()
        raise DeviceError(f"{arguments[0]} exited with {result.returncode}: {words[-200:]}")
    return output
