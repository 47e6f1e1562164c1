"""Streams one file over HTTP, from Hugging Face or any web address. Blocks: runs in a thread.

httpx's errors end here. Imported only when there is something to download: httpx takes a while to load.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from hostler.profiles.downloads import Cancellation, ReportBytes, write_blocks
from hostler.profiles.sources import SourceError

#: To connect, and between two pieces of an answer.
_TIMEOUT_S = 15.0
_MAX_REDIRECTS = 10
#: No transport compression, so that the checksum is that of the transferred bytes.
_HEADERS = {"User-Agent": "hostler", "Accept-Encoding": "identity"}


def download_from_hub(
    repository: str, revision: str, file: str, target: Path, report: ReportBytes, cancellation: Cancellation
) -> str:
    """Download a file of a Hugging Face repository, from `HF_ENDPOINT`, with `HF_TOKEN`. Returns its SHA-256.

    Where the hub announces a checksum, the file must have it. Raises `SourceError`.
    """
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{repository}/resolve/{quote(revision)}/{quote(file)}"
    token = (os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or "").strip()
    if not (token.isascii() and token.isprintable()):
        raise SourceError("HF_TOKEN contains characters that are not allowed in a token")
    credentials = {"Authorization": f"Bearer {token}"} if token else {}
    return _download(url, credentials, target, report, cancellation)


def download_url(url: str, target: Path, report: ReportBytes, cancellation: Cancellation) -> str:
    """Download a web address. Returns the file's SHA-256. Raises `SourceError`."""
    return _download(url, {}, target, report, cancellation)


def _download(
    url: str, credentials: Mapping[str, str], target: Path, report: ReportBytes, cancellation: Cancellation
) -> str:
    # The system's certificates, which may include a company's own, instead of httpx's bundle.
    certificates = ssl.create_default_context()
    address, headers, announced = url, {**_HEADERS, **credentials}, ""
    for _ in range(_MAX_REDIRECTS + 1):
        with _response(address, headers, certificates, cancellation) as response:
            # The hub announces the checksum when it redirects, not where the file is in the end.
            announced = response.headers.get("X-Linked-Etag", announced)
            if response.next_request is None:
                return _save(response, announced.strip('"'), target, report, cancellation)
            address = _redirect_target(response, response.next_request)
            headers = _HEADERS  # credentials are for the first host alone
    raise SourceError(f"{httpx.URL(url).host} redirects more than {_MAX_REDIRECTS} times")


@contextlib.contextmanager
def _response(
    address: str, headers: Mapping[str, str], certificates: ssl.SSLContext, cancellation: Cancellation
) -> Iterator[httpx.Response]:
    """An open response. Raises `SourceError` instead of httpx's errors, also for those of the body."""
    host = address
    try:
        url = httpx.URL(address)
        host = _host(url)
        extensions = {"trace": _watch_sockets(cancellation)}
        with (
            _client(url, certificates) as client,
            client.stream("GET", url, headers=headers, extensions=extensions) as response,
        ):
            yield response
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        cancellation.check()
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
        raise SourceError(f"{host}: {reason}") from None


def _client(url: httpx.URL, certificates: ssl.SSLContext) -> httpx.Client:
    # By default, httpx fails when ALL_PROXY names a SOCKS proxy, even if that is not needed.
    proxy = None if urllib.request.proxy_bypass(_host(url)) else urllib.request.getproxies().get(url.scheme)
    if proxy is not None and "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        return httpx.Client(proxy=proxy, verify=certificates, timeout=_TIMEOUT_S, trust_env=False)
    except (ImportError, ValueError) as error:
        raise SourceError(f"the proxy for {url.scheme} in the environment cannot be used: {error}") from None


def _watch_sockets(cancellation: Cancellation) -> Callable[[str, Mapping[str, Any]], None]:
    """A listener for httpcore's trace events that makes each new connection known to `cancellation`."""

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            cancellation.watch(info["return_value"].get_extra_info("socket"))

    return trace


def _redirect_target(response: httpx.Response, following: httpx.Request) -> str:
    if following.url.scheme not in ("https", response.url.scheme):
        raise SourceError(f"{_host(response.url)} redirects to an address that is not https")
    return str(following.url)


def _save(
    response: httpx.Response, announced: str, target: Path, report: ReportBytes, cancellation: Cancellation
) -> str:
    host = _host(response.url)
    if not response.is_success:
        hint = " (set HF_TOKEN if the model needs an account)" if response.status_code in (401, 403) else ""
        raise SourceError(f"{host} answered {response.status_code} {response.reason_phrase}{hint}")
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    try:
        actual = write_blocks(
            response.iter_raw(), target, total, lambda done: report("downloading", done, total), cancellation
        )
    except httpx.RemoteProtocolError:
        cancellation.check()
        if total is None or response.num_bytes_downloaded >= total:
            raise
        raise SourceError(
            f"{host} closed the connection after {response.num_bytes_downloaded} of {total} bytes"
        ) from None
    if re.fullmatch(r"[0-9a-f]{64}", announced) and announced != actual:
        raise SourceError(f"the downloaded file has the SHA-256 {actual}, but the server announced {announced}")
    return actual


def _host(url: httpx.URL) -> str:
    """Host and port, without credentials."""
    return url.netloc.decode("ascii")
