"""When a host's queue is published."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup

from hostler.supervisor.scheduling.progress import POSITIONS_EVERY_S, QueueProgress


class QueueEvents:
    """Publishes the queue with `publish`: at once while it is short, rarely while it is long, since that takes time
    proportional to its length."""

    def __init__(self, publish: Callable[[], None], progress: QueueProgress) -> None:
        self._publish = publish
        self._progress = progress
        self._due = False

    def publish(self, tasks: TaskGroup | None) -> None:
        """The queue has changed; `tasks` runs what is published later."""
        if not self._progress.crowded or tasks is None:
            self._publish()
        elif not self._due:
            self._due = True
            tasks.start_soon(self._publish_soon)

    async def _publish_soon(self) -> None:
        await anyio.sleep(POSITIONS_EVERY_S)
        self._due = False
        self._publish()
