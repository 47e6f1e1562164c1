"""The identity of a gateway or host in its cluster, which it keeps over restarts, and which copies of its machine do not."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
from pathlib import Path

from hostler.profiles.file_flags import BINARY
from hostler.profiles.file_lock import lock_file

logger = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{16}")
_MACHINE_FILE = Path("/etc/machine-id")


class Identity:
    """An `id` that is kept in a file. A process that finds the file in use by another one, or cannot use it, has an id for
    its own lifetime, and a file that was copied from another machine gets another one. It stays locked until `close`.

    `machine_file` has what the system calls this machine, if it has a name for it.
    """

    def __init__(self, file: Path, machine_file: Path = _MACHINE_FILE) -> None:
        self.file = file
        self._machine_file = machine_file
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
            found, _, where = os.read(descriptor, 64).decode("ascii", "replace").strip().partition(" ")
            machine = self._machine()
            if _ID.fullmatch(found):
                if machine in ("", where):
                    return found
                if where:
                    logger.warning("%s: was copied from another machine, so this one gets an identity of its own", file)
                    found = secrets.token_hex(8)
            else:
                found = secrets.token_hex(8)
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, f"{found} {machine}".strip().encode() + b"\n")
            return found
        except BlockingIOError:
            return None  # another gateway's, which runs on this machine
        except OSError as error:
            _report(file, error)
            return None

    def _machine(self) -> str:
        """A name for this machine that does not tell what it is called; empty if it has none."""
        try:
            text = self._machine_file.read_bytes().strip()
        except OSError:
            return ""
        return hashlib.sha256(b"hostler cluster " + text).hexdigest()[:16] if text else ""

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _report(file: Path, error: OSError) -> None:
    logger.warning("%s: cannot be used, so this is a new member after each start: %s", file, error)
