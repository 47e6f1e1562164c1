"""What each machine's supervisor said last that it has, kept on disk: a machine that sleeps is known all the same."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from hostler.supervisor.contract import ProfileInfo

logger = logging.getLogger(__name__)


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    hosts: dict[str, tuple[ProfileInfo, ...]] = {}


class HostCache:
    """One writer: the gateway. Without a file nothing is remembered. A file that cannot be read or written is reported,
    and stops nothing."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._complained = False
        self._kept = self._read()

    def profiles(self, backend: str) -> tuple[ProfileInfo, ...]:
        """The profiles that a machine had when it was last heard of; none if it never was."""
        return self._kept.hosts.get(backend, ())

    def heard(self, backend: str, profiles: tuple[ProfileInfo, ...]) -> None:
        """A machine has these."""
        if self._file is None or self._kept.hosts.get(backend) == profiles:
            return
        self._kept = _Kept(hosts={**self._kept.hosts, backend: profiles})
        temporary = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_bytes(msgspec.json.encode(self._kept))
            temporary.replace(self._file)
            self._complained = False
        except OSError as error:
            if not self._complained:
                words = "cannot be written, so a restart would forget what sleeping machines have"
                logger.error("%s: %s: %s", self._file, words, error)
            self._complained = True

    def _read(self) -> _Kept:
        if self._file is None:
            return _Kept()
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Kept)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            logger.warning("%s: cannot be read, so machines that sleep are not known yet: %s", self._file, error)
        return _Kept()
