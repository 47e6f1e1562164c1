"""`hostler` as a process, its address read from the banner."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hostler.profiles.store import demo_profiles

#: In the log of a process, signs of a mistake that nothing else reports.
_LEAKS = re.compile(r"Exception ignored|ResourceWarning|was never (awaited|retrieved)|Task was destroyed")

_ADDRESS = re.compile(r"listens on (http://\S+|\S+:\d+)")


class HostlerProcess:
    """A running command. `address` is a URL for a gateway, host and port for a supervisor."""

    def __init__(self, process: subprocess.Popen[str], address: str, printed: list[str], errors: Path) -> None:
        self.process = process
        self.address = address
        self.printed = printed
        self._errors = errors

    @property
    def log(self) -> str:
        """Standard error so far."""
        return self._errors.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal; wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(40)


@contextmanager
def run_hostler(*arguments: str, errors: Path, environ: dict[str, str] | None = None) -> Iterator[HostlerProcess]:
    """Run `hostler ARGUMENTS`; it is listening when the context begins and stopped when it ends.

    Fails if it has left files, sockets or coroutines behind.
    """
    with errors.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "hostler.gateway", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "default::ResourceWarning", **(environ or {})},
        )
    assert process.stdout is not None
    try:
        printed: list[str] = []
        for line in process.stdout:
            printed.append(line.rstrip("\n"))
            if match := _ADDRESS.search(line):
                break
        else:
            raise AssertionError(f"hostler ended with {process.wait()}: {errors.read_text()}")
        yield HostlerProcess(process, match[1], printed, errors)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()
    text = errors.read_text()
    assert not _LEAKS.search(text), text


def write_shipped_model_config(folder: Path, configuration: str) -> str:
    """Write a configuration file whose two `%s` become the shipped model and its checksum; its path."""
    shipped = demo_profiles()[0]
    path = folder / "hostler.yaml"
    path.write_text(configuration % (shipped.model, shipped.sha256))
    return str(path)
