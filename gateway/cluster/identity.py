"""The identity of a gateway in its cluster, which it keeps over restarts."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
from pathlib import Path

logger = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{16}")


class Identity:
    """An `id` that is kept in a file. A process that finds the file in use by another one, or cannot use it, has an id for
    its own lifetime. The file stays locked until `close`."""

    def __init__(self, file: Path) -> None:
        self._descriptor: int | None = None
        self.id = self._kept(file) or secrets.token_hex(8)

    def _kept(self, file: Path) -> str | None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            _report(file, error)
            return None
        self._descriptor = descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
            if _ID.fullmatch(found):
                return found
            fresh = secrets.token_hex(8)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, fresh.encode() + b"\n", 0)
            return fresh
        except BlockingIOError:
            return None  # another gateway's, which runs on this machine
        except OSError as error:
            _report(file, error)
            return None

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _report(file: Path, error: OSError) -> None:
    logger.warning("%s: cannot be used, so this gateway is a new member after each start: %s", file, error)
