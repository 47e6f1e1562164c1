"""One worker process, from its start to its end, as the main process sees it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import anyio

from hostler.gateway.in_flight import RequestView
from hostler.gateway.workers.channel import Channel
from hostler.gateway.workers.frames import (
    CancelRequests,
    FrameFromWorker,
    RequestsCancelled,
    StateQuery,
    StopWorker,
    WorkerFailed,
    WorkerReady,
    WorkerStart,
    WorkerState,
    frames_from_worker,
)
from hostler.supervisor.child import Child

logger = logging.getLogger(__name__)

#: The worker's program, for Python; the number of its end of the channel is added.
PROGRAM: Final = ("-m", "hostler.gateway.worker")

#: A worker is asked for its state in this interval, and counts as frozen when it has not answered for `FROZEN_S`, in
#: seconds.
QUERY_S: Final = 1.0
FROZEN_S: Final = 10.0

#: After this silence other workers accept its connections as well, in seconds.
_SILENT_S: Final = 3.0

#: The longest a worker may take to start, in seconds.
_START_S: Final = 60.0

#: Time for a worker that exits to be reaped, in seconds.
_EXIT_S: Final = 2.0

#: The last lines of its standard error, for the reason why it did not start.
_LAST_LINES: Final = 5


class WorkerProcess:
    """A running worker. `on_frame` gets what it sends, but for what concerns the process itself; `on_ready` is called once,
    `on_silence` when it falls silent and when it answers again (`is_silent`).

    `reason` says why it has ended, once it has.
    """

    def __init__(
        self,
        number: int,
        *,
        on_frame: Callable[[FrameFromWorker], None],
        on_ready: Callable[[], None],
        on_silence: Callable[[], None],
        frozen_s: float = FROZEN_S,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.number = number
        self.is_ready = self.is_silent = False
        self.in_flight: tuple[RequestView, ...] = ()
        self.reason = ""
        self._on_frame = on_frame
        self._on_ready = on_ready
        self._on_silence = on_silence
        self._frozen_s = frozen_s
        self._program = program
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._channel: Channel[FrameFromWorker] | None = None
        self._child: Child | None = None
        self._heard_at = 0.0
        self._ready = anyio.Event()

    @property
    def pid(self) -> int | None:
        """The number of the process, once it has one."""
        return None if self._child is None else self._child.pid

    def send(self, frame: object) -> None:
        """Send a frame, unless the process has ended."""
        if self._channel is not None and not self._channel.closed.is_set():
            self._channel.send(frame)  # type: ignore[arg-type]

    async def run(self, start: WorkerStart) -> None:
        """Start it, and watch it until it has ended. Cancelling kills it."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self.reason = f"cannot be started: {error}"
            return
        try:
            self._channel = Channel(frames_from_worker(), self._receive)
            await self._channel.connect(ours)
            try:
                child = self._child = Child.start(
                    [sys.executable, *self._program, str(theirs.fileno())],
                    os.environ,
                    self._on_line,
                    pass_fds=(
                        theirs.fileno(),
                        *start.sockets,
                        *(each for own in start.others.values() for each in own),
                    ),
                )
            except OSError as error:
                self.reason = f"cannot be started: {error}"
                return
        finally:
            theirs.close()
        try:
            self._channel.send(start)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch_start)
                tasks.start_soon(self._watch_life)
                await child.exited.wait()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await child.end(0.0, stop_signal=None)
                with anyio.move_on_after(_EXIT_S):  # its last frames
                    await self._channel.closed.wait()
                self._channel.close()
            self.is_ready, self.in_flight = False, ()
            self.reason = self.reason or self._why(child.returncode)

    def stop(self, *, shared: bool) -> None:
        """Have it finish its requests and exit; a second call does not wait."""
        self.send(StopWorker(shared))

    def kill(self, reason: str) -> None:
        """End it at once."""
        self.reason = self.reason or reason
        if self._child is not None:
            self._child.signal(signal.SIGKILL)

    async def query(self) -> None:
        """Ask for its state, and wait for it."""
        if self._channel is not None:
            self.in_flight = await self._channel.call(StateQuery)

    async def cancel(self, request_id: str) -> int:
        """Cancel the requests with this id; returns their number."""
        if self._channel is None:
            return 0
        count: int = await self._channel.call(lambda number: CancelRequests(number, request_id))
        return count

    async def _watch_start(self) -> None:
        with anyio.move_on_after(_START_S):
            await self._ready.wait()
            return
        self.kill(f"did not start within {_START_S:g} s")

    async def _watch_life(self) -> None:
        """Ask for its state again and again, and kill it if it is frozen."""
        await self._ready.wait()
        asked_at = self._heard_at = anyio.current_time()
        number = 0
        while True:
            number -= 1  # the numbers of calls are positive
            self.send(StateQuery(number))
            await anyio.sleep(QUERY_S)
            now = anyio.current_time()
            if now - asked_at > 2 * QUERY_S:
                # This process was suspended or busy itself, and cannot know what others did.
                self._heard_at = now
            asked_at = now
            self._set_silent(now - self._heard_at > _SILENT_S)
            if now - self._heard_at > self._frozen_s:
                self.kill(f"has not answered for {self._frozen_s:g} s")
                return

    def _receive(self, frame: FrameFromWorker) -> None:
        self._heard_at = anyio.current_time()
        self._set_silent(False)
        match frame:
            case WorkerState():
                self.in_flight = frame.in_flight
                self._answered(frame.number, frame.in_flight)
            case RequestsCancelled():
                self._answered(frame.number, frame.count)
            case WorkerReady():
                self.is_ready = True
                self._ready.set()
                self._on_ready()
            case WorkerFailed():
                self.reason = frame.message
            case _:
                self._on_frame(frame)

    def _set_silent(self, silent: bool) -> None:
        if silent != self.is_silent:
            self.is_silent = silent
            self._on_silence()

    def _answered(self, number: int, value: object) -> None:
        assert self._channel is not None
        self._channel.answered(number, value)

    def _on_line(self, from_stdout: bool, line: str) -> None:
        """What it writes by itself, which is no log entry: an interpreter that cannot start, a crash."""
        self._lines.append(line)
        logger.error("worker %d: %s", self.number, line)

    def _why(self, returncode: int | None) -> str:
        if returncode is not None and returncode < 0:
            return f"was ended by {signal.Signals(-returncode).name}"
        if returncode:
            last = f": {self._lines[-1]}" if self._lines else ""
            return f"ended with status {returncode}{last}"
        return "ended"
