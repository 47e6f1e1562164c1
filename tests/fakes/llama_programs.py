"""Scripts that answer like a llama-server which is asked what it can do, and archives of them."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
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


def pack_zip(folder: Path, archive: Path, below: str = "") -> Path:
    """A zip of the files in a folder, with their modes and links, as zip programs on Linux make them."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.iterdir()):
            info = zipfile.ZipInfo(f"{below}/{path.name}" if below else path.name)
            info.external_attr = path.lstat().st_mode << 16
            file.writestr(info, str(path.readlink()) if path.is_symlink() else path.read_bytes())
    return archive


_LIBRARY = r"""
#include <stdio.h>
#include <string.h>
int answer(const char *asked) {
    if (!strcmp(asked, "--version")) return puts("version: 9999 (abc1234)") < 0;
    if (!strcmp(asked, "--list-devices")) return puts("Available devices:\n  Vulkan0: RX 7900 (24560 MiB, 24100 MiB free)") < 0;
    return puts("-m,  --model FNAME  model\n--host HOST  address\n--port PORT  port\n-c,  --ctx-size N  context\n"
        "--version  build\n--list-devices  devices") < 0;
}
"""
_MAIN = "int answer(const char *); int main(int n, char **words) { return answer(words[n - 1]); }\n"


def build_llama_server(folder: Path) -> Path:
    """A llama-server of machine code whose library stands beside it, behind two links. Requires gcc."""
    folder.mkdir(parents=True)
    (folder / "lib.c").write_text(_LIBRARY)
    (folder / "main.c").write_text(_MAIN)
    library = "libllama.so.0.0.9999"
    for words in (
        ["-shared", "-fPIC", "-o", library, "lib.c", "-Wl,-soname,libllama.so.0"],
        ["-o", "llama-server", "main.c", library, "-Wl,-rpath,$ORIGIN"],
    ):
        subprocess.run(["gcc", *words], cwd=folder, check=True)
    (folder / "libllama.so.0").symlink_to(library)
    (folder / "libllama.so").symlink_to("libllama.so.0")
    for source in folder.glob("*.c"):
        source.unlink()
    return folder
