"""The identity of a gateway in its cluster, which it keeps over restarts."""

from __future__ import annotations

import logging
import os
import re
import secrets
from pathlib import Path

from hostler.profiles.file_flags import BINARY
from hostler.profiles.file_lock import lock_file

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
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | BINARY, 0o600)
        except OSError as error:
            _report(file, error)
            return None
        self._descriptor = descriptor
        try:
            lock_file(descriptor)
            found = os.read(descriptor, 64).decode("ascii", "replace").strip()
            if _ID.fullmatch(found):
                return found
            fresh = secrets.token_hex(8)
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, fresh.encode() + b"\n")
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
