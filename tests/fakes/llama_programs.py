"""Scripts that answer like a llama-server which is asked what it can do, and archives of them."""

from __future__ import annotations

import tarfile
from pathlib import Path

_SCRIPT = """#!/bin/sh
case "$*" in
*--help) printf '%s\\n' '-m,  --model FNAME  model' '--host HOST  address' '--port PORT  port' '-c,  --ctx-size N  context' \\
    '--version  build' '--list-devices  devices';;
*--version) echo 'version: {build}';;
*--list-devices) printf '%s\\n' 'Available devices:' {devices};;
*) exit 1;;
esac
"""


def write_program(path: Path, build: str = "6711 (abc)", devices: tuple[str, ...] = ()) -> Path:
    """A llama-server of this build with these devices."""
    return write_script(path, _SCRIPT.format(build=build, devices=" ".join(f"'  {each}'" for each in devices)))


def write_script(path: Path, text: str) -> Path:
    """A program that is this text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def pack(folder: Path, archive: Path) -> Path:
    """A release archive of a folder."""
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    return archive
