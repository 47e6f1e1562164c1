"""Downloads from a hub and from the web."""

from __future__ import annotations

import gzip
import hashlib
import socket
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from fakes.downloads import HF, HF_PATH, stored_files, tiny_profile, until

from hostler.profiles.downloads import Cancellation, DownloadCancelled
from hostler.profiles.fetch import cached, fetch
from hostler.profiles.http_download import download_from_hub, download_url, read_page
from hostler.profiles.sources import SourceError

pytestmark = pytest.mark.anyio


async def test_cancelling_ends_a_stalled_download(hub: Any, tmp_path: Path, content: bytes) -> None:
    hub.responses[HF_PATH] = (200, {"X-Hold": "1", "Content-Length": "99999999"}, content)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: fetch(tiny_profile(HF), cache_dir=tmp_path / "c"))
            await until(hub.held.is_set)
            group.cancel_scope.cancel()
    assert stored_files(tmp_path / "c") == []


async def test_sends_the_token_to_the_first_host_only(
    hub: Any, tmp_path: Path, content: bytes, sha256: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub.responses[HF_PATH] = (302, {"Location": "/cdn", "X-Linked-Etag": f'"{sha256}"'}, b"")
    hub.responses["/cdn"] = (200, {}, content)
    path = await fetch(tiny_profile(HF), cache_dir=tmp_path / "c")
    assert path.read_bytes() == content
    assert hub.requests == [(HF_PATH, "Bearer hf_x"), ("/cdn", None)]
    assert cached(tiny_profile(HF), cache_dir=tmp_path / "c") == path


@pytest.mark.parametrize(
    ("link", "following"),
    [
        ("https://a.test/2", "https://a.test/2"),
        ("/2", "https://a.test/2"),
        ("http://a.test/2", ""),
        ("https://b.test/2", ""),
    ],
)
def test_the_next_page_is_one_that_may_get_the_token(httpx_mock: Any, link: str, following: str) -> None:
    httpx_mock.add_response(url="https://a.test/1", headers={"Link": f'<{link}>; rel="next"'})
    assert read_page("https://a.test/1", {}, Cancellation(), limit=9) == (b"", following)


def test_a_page_behind_a_redirect_to_another_host_has_no_next_one_there(httpx_mock: Any) -> None:
    httpx_mock.add_response(url="https://a.test/1", status_code=307, headers={"Location": "https://b.test/1"})
    httpx_mock.add_response(url="https://b.test/1", headers={"Link": '<https://b.test/2>; rel="next"'})
    assert read_page("https://a.test/1", {}, Cancellation(), limit=9) == (b"", "")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ((404, {}, b""), "answered 404 Not Found"),
        ((401, {}, b""), r"answered 401 Unauthorized \(set HF_TOKEN if the model needs an account\)"),
        ((200, {"Content-Length": "100"}, b"short"), "closed the connection after 5 of 100 bytes"),
        (
            (200, {"X-Linked-Etag": "0" * 64}, b"other"),
            r"but the server announced 0+; it was deleted\. Try again; .* damaged\.$",
        ),
        ((302, {"Location": "ftp://x/y"}, b""), "redirects to an address that is not https"),
        (
            (200, {"Content-Length": str(10**18)}, b""),
            r"not enough disk space: 1000000000\.0 GB needed and 0\.1 GB to spare, .* another disk\.$",
        ),
    ],
)
async def test_a_failed_download_leaves_nothing(
    hub: Any, tmp_path: Path, response: tuple[int, dict[str, str], bytes], reason: str
) -> None:
    hub.responses[HF_PATH] = response
    with pytest.raises(SourceError, match=reason):
        await fetch(tiny_profile(HF), cache_dir=tmp_path / "c")
    assert stored_files(tmp_path / "c") == []


async def test_an_unreachable_host_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9: .*refused.* Put tiny\.gguf into .*/models/hf/org/repo/ or"):
        await fetch(tiny_profile(HF), cache_dir=tmp_path / "c")


def download(url: str, tmp_path: Path, cancellation: Cancellation | None = None) -> str:
    return download_url(url, tmp_path / "file", lambda *_: None, cancellation or Cancellation())


async def test_cancelling_ends_the_wait_for_a_response(tmp_path: Path) -> None:
    cancellation = Cancellation()
    with socket.create_server(("127.0.0.1", 0)) as silent, anyio.fail_after(20):
        async with anyio.create_task_group() as group:

            async def wait_in_vain() -> None:
                with pytest.raises(DownloadCancelled):
                    await to_thread.run_sync(
                        download, f"http://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path, cancellation
                    )

            group.start_soon(wait_in_vain)
            connection, _ = await to_thread.run_sync(silent.accept)
            with connection:
                await to_thread.run_sync(connection.recv, 1000)
                cancellation.cancel()


def test_does_not_follow_from_https_to_http(httpx_mock: Any, tmp_path: Path) -> None:
    httpx_mock.add_response(url="https://a.test/x", status_code=302, headers={"Location": "http://b.test/x"})
    with pytest.raises(SourceError, match=r"a\.test redirects to an address that is not https"):
        download("https://a.test/x", tmp_path)


def test_follows_from_http_to_https(httpx_mock: Any, tmp_path: Path, content: bytes, sha256: str) -> None:
    httpx_mock.add_response(url="http://a.test/x", status_code=307, headers={"Location": "https://b.test/x"})
    httpx_mock.add_response(url="https://b.test/x", content=content)
    assert download("http://a.test/x", tmp_path) == sha256


def test_endless_redirects_are_an_error(hub: Any, tmp_path: Path) -> None:
    hub.responses["/x"] = (302, {"Location": "/x"}, b"")
    with pytest.raises(SourceError, match="redirects more than 10 times"):
        download(f"{hub.url}/x", tmp_path)
    assert len(hub.requests) == 11


def test_stores_compressed_files_as_they_are(hub: Any, tmp_path: Path) -> None:
    packed = gzip.compress(b"content")
    hub.responses["/x.gz"] = (200, {"Content-Encoding": "gzip"}, packed)
    assert download(f"{hub.url}/x.gz", tmp_path) == hashlib.sha256(packed).hexdigest()


def test_uses_the_proxy_of_the_environment(
    hub: Any, tmp_path: Path, content: bytes, sha256: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", hub.url.removeprefix("http://"))
    monkeypatch.setenv("all_proxy", "socks://127.0.0.1:9")  # unknown to httpx, and not needed
    hub.responses["http://models.test/x"] = (200, {}, content)
    assert download("http://models.test/x", tmp_path) == sha256
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    hub.responses["/x"] = (200, {}, content)
    assert download(f"{hub.url}/x", tmp_path) == sha256


def test_an_unusable_proxy_is_a_source_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", "socks://me:password@127.0.0.1:9")
    with pytest.raises(SourceError, match="the proxy for http in the environment cannot be used") as caught:
        download("http://models.test/x", tmp_path)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("token", ["hf_\nx", "hf_ä"])
def test_a_malformed_token_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SourceError, match="HF_TOKEN contains characters") as caught:
        download_from_hub("org/repo", "main", "x", tmp_path / "file", lambda *_: None, Cancellation())
    assert token not in str(caught.value)


@pytest.mark.parametrize("url", ["https://[/x", "ftp://a.test/x", "http://a.test:99999/x"])
def test_an_unusable_address_is_a_source_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(SourceError):
        download(url, tmp_path)
