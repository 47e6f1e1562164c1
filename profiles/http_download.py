"""Reads files over HTTP, from Hugging Face or any web address, whole or for a start. Blocks: runs in a thread.

httpx's errors end here. Imported only when there is something to download: httpx takes a while to load.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from hostler.profiles.downloads import Cancellation, ReportBytes, write_blocks
from hostler.profiles.hub_access import hub_credentials, hub_endpoint
from hostler.profiles.partial_file import PartialFile
from hostler.profiles.sources import SourceError, UnusableDownload

_Result = TypeVar("_Result")

#: To connect, and between two pieces of an answer.
_TIMEOUT_S = 15.0
_MAX_REDIRECTS = 10
#: No transport compression, so that the checksum is that of the transferred bytes.
_HEADERS = {"User-Agent": "hostler", "Accept-Encoding": "identity"}

#: A connection that breaks is made again so often without any progress, after so many seconds.
_MAX_BREAKS = 3
_PAUSE_S = 0.5
#: A server that asks to wait is waited for so often, and no longer than so many seconds each time.
_MAX_WAITS = 4
_MAX_WAIT_S = 300.0
_DEFAULT_WAIT_S = 5.0


class WebAnswer(Exception):
    """An answer other than success, for callers that know what it means."""

    def __init__(self, host: str, response: httpx.Response) -> None:
        super().__init__(host, response.status_code)
        self.status = response.status_code
        self.error = SourceError(
            f"{host} answered {response.status_code} {response.reason_phrase}{_hint(host, response)}"
        )


class _Broken(Exception):
    """A connection broke; what has arrived is kept, and can be continued."""

    def __init__(self, error: SourceError) -> None:
        super().__init__(error)
        self.error = error


def download_from_hub(
    repository: str, revision: str, file: str, target: Path, report: ReportBytes, cancellation: Cancellation
) -> str:
    """Download a file of a Hugging Face repository with its token. Returns its SHA-256.

    Where the hub announces a checksum, the file must have it. Raises `SourceError`.
    """
    url = f"{hub_endpoint()}/{repository}/resolve/{quote(revision)}/{quote(file)}"
    return _download(url, hub_credentials(), target, report, cancellation)


def download_url(url: str, target: Path, report: ReportBytes, cancellation: Cancellation) -> str:
    """Download a web address. Returns the file's SHA-256. Raises `SourceError`."""
    return _download(url, {}, target, report, cancellation)


def read_start(url: str, credentials: Mapping[str, str], length: int, cancellation: Cancellation) -> bytes:
    """The first `length` bytes of what is at an address. Raises `SourceError`, and `WebAnswer` for an error status."""

    def read(response: httpx.Response, _: str) -> bytes:
        if response.status_code == 416:
            return b""  # an empty file has no first byte
        if not response.is_success:
            raise WebAnswer(_host(response.url), response)
        found = b""
        for block in response.iter_raw():
            found += block
            if len(found) >= length:
                break
        return found[:length]

    return _follow(url, credentials, cancellation, read, headers={**_HEADERS, "Range": f"bytes=0-{length - 1}"})


def read_page(url: str, headers: Mapping[str, str], cancellation: Cancellation, *, limit: int) -> tuple[bytes, str]:
    """The whole document at an address, and the address of its next page. Raises like `read_start`.

    `headers` are for the first host alone.
    """

    def read(response: httpx.Response, _: str) -> tuple[bytes, str]:
        if not response.is_success:
            raise WebAnswer(_host(response.url), response)
        found = b""
        for block in response.iter_raw():
            found += block
            if len(found) > limit:
                raise SourceError(f"{_host(response.url)} answered with more than {limit} bytes")
        if "next" not in response.links:
            return found, ""
        following = response.url.join(response.links["next"]["url"])
        # The caller sends its token there: to no other host, also after a redirect, and not without encryption.
        first = httpx.URL(url)
        same = (following.scheme, following.netloc) == (first.scheme, first.netloc)
        return found, str(following) if same else ""

    return _follow(url, headers, cancellation, read)


def _download(
    url: str, credentials: Mapping[str, str], target: Path, report: ReportBytes, cancellation: Cancellation
) -> str:
    partial, breaks = PartialFile(target), 0
    while True:
        before = partial.size
        headers = {**_HEADERS, **partial.range_headers()}

        def save(response: httpx.Response, announced: str) -> str:
            return _save(response, announced.strip('"'), partial, report, cancellation)

        try:
            return _follow(url, credentials, cancellation, save, headers=headers, report=report)
        except WebAnswer as answer:
            if answer.status != 416 or not before:
                raise answer.error from None
            partial.discard()  # it is longer than the file is now
        except _Broken as broken:
            breaks = 0 if partial.size > before else breaks + 1
            if breaks >= _MAX_BREAKS or cancellation.wait(_PAUSE_S):
                cancellation.check()
                raise broken.error from None


def _follow(
    url: str,
    credentials: Mapping[str, str],
    cancellation: Cancellation,
    use: Callable[[httpx.Response, str], _Result],
    *,
    headers: Mapping[str, str] = _HEADERS,
    report: ReportBytes | None = None,
) -> _Result:
    """What `use` makes of the answer behind all redirects, and of the checksum that was announced on the way.

    A server that asks to wait is asked again. Credentials are sent to the first host alone.
    """
    # The system's certificates, which may include a company's own, instead of httpx's bundle.
    certificates = ssl.create_default_context()
    for waits in range(_MAX_WAITS + 1):
        address, sent, announced, pause_s, limited = url, {**headers, **credentials}, "", 0.0, False
        for _ in range(_MAX_REDIRECTS + 1):
            with _response(address, sent, certificates, cancellation) as response:
                # The hub announces the checksum when it redirects, not where the file is in the end.
                announced = response.headers.get("X-Linked-Etag", announced)
                if (asked := _asked_to_wait(response)) is not None:
                    pause_s, limited = asked, response.status_code == httpx.codes.TOO_MANY_REQUESTS
                    break
                if response.next_request is None:
                    return use(response, announced)
                address = _redirect_target(response, response.next_request)
                sent = dict(headers)
        else:
            raise SourceError(f"{httpx.URL(url).host} redirects more than {_MAX_REDIRECTS} times")
        if waits == _MAX_WAITS:
            break
        if report is not None:
            report("waiting", 0, None)
        cancellation.wait(pause_s)
        cancellation.check()
    if not limited:
        raise SourceError(f"{_host(httpx.URL(url))} is not available for now; try again later")
    raise SourceError(f"{_host(httpx.URL(url))} allows no more requests for now; try again later, or with HF_TOKEN")


def _asked_to_wait(response: httpx.Response) -> float | None:
    """How long the server asks to wait, in seconds; `None` if it does not. Raises `SourceError` if that is too long."""
    text = response.headers.get("Retry-After", "")
    if response.status_code != 429 and not (response.status_code == 503 and text):
        return None
    seconds = _DEFAULT_WAIT_S
    if re.fullmatch(r"\d{1,9}", text):
        seconds = float(text)
    elif text:
        with contextlib.suppress(ValueError):
            seconds = max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    if seconds > _MAX_WAIT_S:
        raise SourceError(f"{_host(response.url)} asks to wait {seconds:.0f} s before the next request; try again then")
    return seconds


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
    response: httpx.Response, announced: str, partial: PartialFile, report: ReportBytes, cancellation: Cancellation
) -> str:
    host = _host(response.url)
    if not response.is_success:
        raise WebAnswer(host, response)
    length = response.headers.get("Content-Length", "")
    start = partial.begin(response.status_code, response.headers, announced)
    if start is None:
        raise _Broken(SourceError(f"{host} continues another file than the one that was begun"))
    total = start + int(length) if length.isdigit() else None
    try:
        actual = write_blocks(
            response.iter_raw(),
            partial.file,
            total,
            lambda done: report("downloading", done, total),
            cancellation,
            start=start,
        )
    except (httpx.TransportError, httpx.StreamError) as error:
        cancellation.check()
        done = start + response.num_bytes_downloaded
        if total is None or done >= total or not (partial.can_continue or isinstance(error, httpx.RemoteProtocolError)):
            raise
        cut = SourceError(f"{host} closed the connection after {done} of {total} bytes")
        if partial.can_continue:
            raise _Broken(cut) from None
        raise cut from None
    if re.fullmatch(r"[0-9a-f]{64}", announced) and announced != actual:
        partial.discard()
        raise UnusableDownload(
            f"the downloaded file has the SHA-256 {actual}, but the server announced {announced}; it was deleted. "
            "Try again; if that ends in the same way, the server's copy is damaged"
        )
    return actual


def _hint(host: str, response: httpx.Response) -> str:
    """What to do about a refusal of the hub."""
    if response.status_code not in (401, 403):
        return ""
    if response.headers.get("X-Error-Code") == "GatedRepo":
        return f" (the model is gated: accept its terms on {host}, then set HF_TOKEN)"
    return " (set HF_TOKEN if the model needs an account)"


def _host(url: httpx.URL) -> str:
    """Host and port, without credentials."""
    return url.netloc.decode("ascii")
