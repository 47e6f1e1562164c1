"""A disk that becomes full in the middle of a download."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.model_folders import write_chat
from fakes.scripted_hub import ScriptedHub, hub_environment, running_hub

pytestmark = pytest.mark.timeout(240)

SIZE = 3_000_000
MIB = 1024**2

#: Runs `get`, and fills the disk when it is told to. Then it frees the disk, and gets the model again.
_IN_TMPFS = """
set -e
mount -t tmpfs -o size=80m none "$DISK"
export HOSTLER_CACHE="$DISK/cache"
"$PYTHON" -m hostler.gateway get -hf org/m > first.out 2> first.err < /dev/null & child=$!
read -r _
until [ -s "$(echo "$DISK"/cache/models/.partial/*/file)" ]; do sleep 0.02; done
dd if=/dev/zero of="$DISK/other" bs=1M count=200 2> /dev/null || true
echo full
set +e; wait $child; echo $? > first.rc; set -e
rm "$DISK/other"
exec "$PYTHON" -m hostler.gateway get -hf org/m
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHub]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with running_hub() as scripted:
        content = write_chat(tmp_path / "m.gguf").read_bytes()
        scripted.add("org/m", "m-Q8_0.gguf", content + b"\0" * (SIZE - len(content)))
        yield scripted


def environment(hub: ScriptedHub, folder: Path) -> dict[str, str]:
    state = {name: str(folder / name.lower()) for name in ("HOSTLER_CACHE", "XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    return {**os.environ, **state, **hub_environment(hub, str(folder / "huggingface"))}


def test_a_limit_of_file_sizes_is_named_and_what_has_arrived_is_kept(hub: ScriptedHub, tmp_path: Path) -> None:
    def get(limit: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hostler.gateway", "get", "-hf", "org/m"],
            capture_output=True, text=True, timeout=100, env=environment(hub, tmp_path),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
        )  # fmt: skip

    failed = get(MIB)
    assert failed.returncode == 1
    assert "could not write m-Q8_0.gguf to " in failed.stderr and "File too large" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not Path("hostler.yaml").exists()
    assert not list((tmp_path / "hostler_cache" / "models" / "hf").rglob("*.gguf"))
    assert get(resource.RLIM_INFINITY).returncode == 0
    assert hub.requests[-1][3] == f"bytes={MIB}-"
    assert "m-q8_0" in Path("hostler.yaml").read_text()


def test_a_full_disk_is_named_and_what_has_arrived_is_kept(hub: ScriptedHub, tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    hub.pauses["org/m/m-Q8_0.gguf"] = MIB
    disk = tmp_path / "disk"
    disk.mkdir()
    child = subprocess.Popen(
        [unshare, "-Urm", "sh", "-c", _IN_TMPFS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**environment(hub, tmp_path), "DISK": str(disk), "PYTHON": sys.executable},
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    assert hub.paused.wait(30)
    child.stdin.write("fill\n")
    child.stdin.flush()
    assert child.stdout.readline() == "full\n"
    hub.proceed.set()
    _, errors = child.communicate(timeout=50)
    first = Path("first.err").read_text()
    assert Path("first.rc").read_text().strip() == "1", first
    assert "could not write m-Q8_0.gguf to " in first and "No space left on device" in first
    assert "Traceback" not in first
    assert child.returncode == 0, errors
    assert (hub.requests[-1][3] or "").startswith("bytes=")
    assert "m-q8_0" in Path("hostler.yaml").read_text()
