"""Common parts of all downloads: cancellation, progress, disk space checks, and checksums."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from hostler.profiles.sources import BLOCK, REPORT_S, DownloadPhase, SourceError, UnusableDownload

_SPARE_BYTES = 64 * 1024 * 1024


class ReportBytes(Protocol):
    """Progress callback: how many bytes are there, of how many if that is known."""

    def __call__(self, phase: DownloadPhase, completed: int, total: int | None) -> None: ...


class DownloadCancelled(SourceError):
    pass


class Cancellation:
    """Cancels a fetch from another thread: between two blocks, and in a read that is waiting on a watched socket."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._sockets: list[socket.socket] = []

    def cancel(self) -> None:
        self._event.set()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                # Not `SSLSocket.shutdown`: it takes the TLS state away from the thread that is reading.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    @property
    def is_cancelled(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until the fetch is cancelled. Returns whether it is."""
        return self._event.wait(seconds)

    def check(self) -> None:
        """Raises `DownloadCancelled` once cancelled."""
        if self._event.is_set():
            raise DownloadCancelled("cancelled")

    def watch(self, connection: socket.socket) -> None:
        """Shut this socket down when the fetch is cancelled."""
        self._sockets.append(connection)
        if self._event.is_set():
            self.cancel()


def write_blocks(
    blocks: Iterable[bytes],
    target: Path,
    total: int | None,
    report: Callable[[int], None],
    cancellation: Cancellation,
    *,
    start: int = 0,
) -> str:
    """Write to `target` from `start` on, never more than a block beyond `total`. Returns the SHA-256 of the whole file.

    Raises `SourceError` if the blocks do not add up to `total` or the disk is too small.
    """
    check_disk_space(target, (total or start) - start)
    digest, done, reported_at = hashlib.sha256(), start, 0.0
    with target.open("r+b" if start else "wb") as file:
        while file.tell() < start:
            cancellation.check()
            digest.update(file.read(min(BLOCK, start - file.tell())))
        file.truncate(start)
        for block in blocks:
            cancellation.check()
            done += len(block)
            if total is not None and done > total:
                break
            if total is None:
                check_disk_space(target, len(block))
            digest.update(block)
            file.write(block)
            if (now := time.monotonic()) - reported_at >= REPORT_S or done == total:
                reported_at = now
                report(done)
    cancellation.check()
    if total is not None and done != total:
        raise SourceError(f"received {done} bytes instead of {total}")
    return digest.hexdigest()


def check_disk_space(target: Path, needed: int) -> None:
    """Raises `SourceError` if `needed` bytes, and some to spare, do not fit on the disk of `target`."""
    free = shutil.disk_usage(target.parent).free
    if free < needed + _SPARE_BYTES:
        unit, name = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
        spare, left = _SPARE_BYTES / unit, free / unit
        raise UnusableDownload(
            f"not enough disk space: {needed / unit:.1f} {name} needed and {spare:.1f} {name} to spare, {left:.1f} {name} free; "
            "make room, or set HOSTLER_CACHE to a folder on another disk"
        )
