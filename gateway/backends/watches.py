"""Background tasks of backends, which can be added and ended while others run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from anyio.abc import TaskGroup

Work = Callable[[], Coroutine[Any, Any, object]]


class Watches:
    """What runs for each backend, by its name, while `run` runs."""

    def __init__(self) -> None:
        self._works: dict[str, list[Work]] = defaultdict(list)
        self._scopes: dict[str, list[anyio.CancelScope]] = defaultdict(list)
        self._tasks: TaskGroup | None = None

    def add(self, backend: str, work: Work) -> None:
        """Run `work`, now or once `run` does, until it is ended."""
        self._works[backend].append(work)
        self._start(backend, work)

    def end(self, backend: str) -> None:
        """Cancel what runs for a backend."""
        self._works.pop(backend, None)
        for scope in self._scopes.pop(backend, ()):
            scope.cancel()

    async def run(self) -> None:
        """Run all of it until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for backend, works in self._works.items():
                for work in works:
                    self._start(backend, work)
            try:
                await anyio.sleep_forever()
            finally:
                self._tasks = None

    def _start(self, backend: str, work: Work) -> None:
        if self._tasks is None:
            return
        scope = anyio.CancelScope()
        self._scopes[backend].append(scope)

        async def watch() -> None:
            with scope:
                await work()

        self._tasks.start_soon(watch)
