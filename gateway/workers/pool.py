"""All workers: started, started again when one ends, asked, and stopped."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol

import anyio
import msgspec

from hostler.gateway.in_flight import RequestView
from hostler.gateway.workers.channel import ChannelClosed
from hostler.gateway.workers.frames import AbsentWorkers, FrameFromWorker, WorkerStart
from hostler.gateway.workers.process import FROZEN_S, PROGRAM, WorkerProcess

logger = logging.getLogger(__name__)

#: A worker that ran for less than this is started again after a pause, which doubles up to a limit, in seconds.
_STABLE_S: Final = 10.0
_PAUSE_S: Final = 0.5
_MAX_PAUSE_S: Final = 30.0

#: How long one question to all workers may take, and one order, in seconds: one that is frozen is not waited for.
_ASK_S: Final = 0.3
_CANCEL_S: Final = 2.0

#: Additional time for workers to exit, after that for their requests, in seconds.
_EXIT_S: Final = 8.0


class WorkerHandler(Protocol):
    """What the main process does for one worker: `receive` its frames, and `close` once it has ended."""

    def receive(self, frame: FrameFromWorker) -> None:
        """A frame from the worker."""

    def close(self) -> None:
        """The worker has ended."""


class WorkerPool:
    """`count` workers. `make_start` returns what the worker of a number is started with, `make_handler` what serves it.

    `started` is set once all of them accept connections. `restarts` counts the workers that were replaced.
    """

    def __init__(
        self,
        count: int,
        *,
        make_start: Callable[[int], WorkerStart],
        make_handler: Callable[[WorkerProcess], WorkerHandler],
        frozen_s: float = FROZEN_S,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.count = count
        self.restarts = 0
        self.started = anyio.Event()
        self._make_start = make_start
        self._make_handler = make_handler
        self._frozen_s = frozen_s
        self._program = program
        self._running: dict[int, WorkerProcess] = {}
        self._stopping = anyio.Event()
        self._shared = False
        self._failure: str | None = None
        self._scope: anyio.CancelScope | None = None
        self._ended = anyio.Event()

    async def run(self) -> str | None:
        """Keep the workers running until all have ended after `stop`; cancelling kills them.

        If one ends before all have started, all are ended; returns why.
        """
        async with anyio.create_task_group() as tasks:
            self._scope = tasks.cancel_scope
            for number in range(1, self.count + 1):
                tasks.start_soon(self._keep, number)
        return self._failure

    @property
    def serving(self) -> int:
        """How many workers accept connections."""
        return sum(worker.is_ready for worker in self._running.values())

    @property
    def processes(self) -> Sequence[WorkerProcess]:
        """The workers that run."""
        return tuple(self._running.values())

    def broadcast(self, frame: msgspec.Struct, *, but: int = 0) -> None:
        """Send a frame to all workers, but for the one with that number."""
        for number, worker in self._running.items():
            if number != but:
                worker.send(frame)

    def stop(self, *, shared: bool) -> None:
        """Have all workers finish their requests and exit; a second call does not wait.

        `shared`: the listening sockets stay open in another process.
        """
        self._shared = shared
        self._stopping.set()
        for worker in self._running.values():
            worker.stop(shared=shared)

    async def ended(self, drain_s: float) -> None:
        """Wait for the workers to exit after `stop`, for as long as their requests may take, then kill them."""
        with anyio.move_on_after(drain_s + _EXIT_S):
            while self._running:
                await self._ended.wait()
        for worker in self._running.values():
            worker.kill("did not exit in time")

    # As `OtherProcesses`.

    def views(self) -> Sequence[RequestView]:
        """See `OtherProcesses`."""
        return [view for worker in self._running.values() for view in worker.in_flight]

    async def refresh(self) -> None:
        """See `OtherProcesses`."""
        await self._ask(lambda worker: worker.query(), _ASK_S)

    async def cancel(self, request_id: str) -> int:
        """See `OtherProcesses`."""
        cancelled = 0

        async def cancel(worker: WorkerProcess) -> None:
            nonlocal cancelled
            count = await worker.cancel(request_id)
            cancelled += count

        await self._ask(cancel, _CANCEL_S)
        return cancelled

    async def _ask(self, question: Callable[[WorkerProcess], Awaitable[None]], limit_s: float) -> None:
        async def ask(worker: WorkerProcess) -> None:
            try:
                await question(worker)
            except ChannelClosed:
                pass  # it has just ended, and has no requests any more

        with anyio.move_on_after(limit_s):
            async with anyio.create_task_group() as tasks:
                for worker in self.processes:
                    if worker.is_ready:
                        tasks.start_soon(ask, worker)

    async def _keep(self, number: int) -> None:
        """Keep one worker running."""
        pause_s = _PAUSE_S
        while not self._stopping.is_set():
            started_at = anyio.current_time()
            worker = await self._run_one(number)
            if self._stopping.is_set():
                return
            if not self.started.is_set():
                self._failure = f"worker {number} {worker.reason}"
                assert self._scope is not None, "set by `run`"
                self._scope.cancel()
                return
            self.restarts += 1
            logger.error("worker %d %s; its requests are cut off, and another one is started", number, worker.reason)
            if anyio.current_time() - started_at > _STABLE_S:
                pause_s = _PAUSE_S
                continue
            with anyio.move_on_after(pause_s):
                await self._stopping.wait()
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def _run_one(self, number: int) -> WorkerProcess:
        worker = WorkerProcess(
            number,
            on_frame=lambda frame: handler.receive(frame),
            on_ready=partial(self._on_ready, number),
            on_silence=self._report_absent,
            frozen_s=self._frozen_s,
            program=self._program,
        )
        handler = self._make_handler(worker)
        self._running[number] = worker
        try:
            await worker.run(self._make_start(number))
        finally:
            del self._running[number]
            handler.close()
            self._report_absent()
            ended, self._ended = self._ended, anyio.Event()
            ended.set()
        return worker

    def _on_ready(self, number: int) -> None:
        if self._stopping.is_set():
            self._running[number].stop(shared=self._shared)
        elif not self.started.is_set() and self.serving == self.count:
            self.started.set()
        elif self.started.is_set():
            logger.warning("worker %d serves again", number)
            self._report_absent()

    def _report_absent(self) -> None:
        """Have the other workers accept the connections of those that do not serve."""
        if self.started.is_set() and not self._stopping.is_set():
            serving = {number for number, worker in self._running.items() if worker.is_ready and not worker.is_silent}
            self.broadcast(AbsentWorkers(tuple(number for number in range(1, self.count + 1) if number not in serving)))
