"""Models' files on their way here, each once however many wait for it; it stops when nobody does any more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from hostler.profiles.schema import Profile
from hostler.profiles.sources import FetchProgress, SourceError
from hostler.supervisor.files import Prepare

Report = Callable[[FetchProgress], None]


class Fetches:
    """Has files come through `prepare`. One is the same as another if model and checksum are."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._coming: dict[tuple[str, str | None], _Fetch] = {}

    async def file(self, tasks: TaskGroup, profile: Profile, report: Report = lambda _: None) -> Path:
        """The profile's file on disk; `report` hears how far it is. Who is cancelled does not stop it for others.

        It comes in `tasks`, which must outlive whoever waits. Raises what `prepare` does.
        """
        key = (profile.model, profile.sha256)
        fetch = self._coming.get(key)
        if fetch is None or fetch.scope.cancel_called:
            fetch = self._coming[key] = _Fetch()
            tasks.start_soon(self._fetch, key, profile, fetch)
        with fetch.joined(report):
            await fetch.over.wait()
        if fetch.error is not None:
            raise fetch.error
        if fetch.path is None:
            raise SourceError("the supervisor is stopping")
        return fetch.path

    async def _fetch(self, key: tuple[str, str | None], profile: Profile, fetch: _Fetch) -> None:
        try:
            with fetch.scope:
                fetch.path = await self._prepare(profile, fetch.tell)
        except Exception as error:
            fetch.error = error
        finally:
            # Who comes from now on begins anew: this one may have been given up.
            if self._coming.get(key) is fetch:
                del self._coming[key]
            fetch.over.set()


class _Fetch:
    """One file on its way, and who listens."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.over = anyio.Event()
        self.path: Path | None = None
        self.error: Exception | None = None
        self._listeners: list[Report] = []
        self._last: FetchProgress | None = None

    def tell(self, progress: FetchProgress) -> None:
        self._last = progress
        for listener in list(self._listeners):
            listener(progress)

    def joined(self, report: Report) -> ExitStack:
        """Listens while the context lasts; the last one to leave ends what is not over."""
        self._listeners.append(report)
        if self._last is not None:
            report(self._last)
        stack = ExitStack()
        stack.callback(self._leave, report)
        return stack

    def _leave(self, report: Report) -> None:
        self._listeners.remove(report)
        if not self._listeners and not self.over.is_set():
            self.scope.cancel()
