"""The last known profiles of every host, on disk, so that the models of a sleeping host are listed after a restart."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hostler.supervisor.contract import ProfileInfo
from hostler.supervisor.state_store import JsonStore


class _Contents(msgspec.Struct, frozen=True, kw_only=True):
    hosts: dict[str, tuple[ProfileInfo, ...]] = {}


class HostCache:
    """Without a file nothing is kept. A file that cannot be read or written is logged, and raises nothing."""

    def __init__(self, file: Path | None) -> None:
        self._store = JsonStore(file, _Contents, contents="models of sleeping hosts")
        self._contents = self._store.read() or _Contents()

    def profiles(self, backend: str) -> tuple[ProfileInfo, ...]:
        """The last known profiles of a host; empty if it was never reached."""
        return self._contents.hosts.get(backend, ())

    def update(self, backend: str, profiles: tuple[ProfileInfo, ...]) -> None:
        if self._store.file is None or self.profiles(backend) == profiles:
            return
        self._contents = _Contents(hosts={**self._contents.hosts, backend: profiles})
        self._store.write(lambda: self._contents)
