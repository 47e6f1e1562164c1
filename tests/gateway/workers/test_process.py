"""Worker processes as the main process sees them: started, watched, and replaced."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import anyio
import pytest

from hostler.gateway.backends.cost import DailySpending
from hostler.gateway.settings import Settings
from hostler.gateway.workers.frames import FrameFromWorker, SpendingState, WorkerStart
from hostler.gateway.workers.pool import WorkerHandler, WorkerPool
from hostler.gateway.workers.process import WorkerProcess

pytestmark = pytest.mark.anyio

#: Says that it is ready, and answers every question about its state, until it is told to stop.
OBEDIENT = """
import socket, sys
from hostler.gateway.workers.frames import *
stream, sock = frames_to_worker(), socket.socket(fileno=int(sys.argv[1]))
while data := sock.recv(65536):
    for frame in stream.feed(data):
        if isinstance(frame, WorkerStart):
            sock.sendall(encode_frame(WorkerReady()))
        elif isinstance(frame, StateQuery):
            sock.sendall(encode_frame(WorkerState(frame.number, ())))
        elif isinstance(frame, CancelRequests):
            sock.sendall(encode_frame(RequestsCancelled(frame.number, 1)))
        elif isinstance(frame, AbsentWorkers):
            print("absent:", *frame.numbers, flush=True)
        elif isinstance(frame, StopWorker):
            sys.exit()
"""
NO_ROOM = "import sys; sys.exit('no room for this worker')"
UNABLE = """
import socket, sys
from hostler.gateway.workers.frames import *
socket.socket(fileno=int(sys.argv[1])).sendall(encode_frame(WorkerFailed("cannot serve: no certificate")))
sys.exit(1)
"""


def start(number: int) -> WorkerStart:
    return WorkerStart(
        number=number, release="1", settings=Settings(), keys_needed=False, sockets=(), others={}, forward_to="", secret="", supervisor=None, presets={}, models={},
        profiles={}, joined=(), active=None, spending=SpendingState(DailySpending(day=""), 0.0, 0.0, 0), log_level=20,
    )  # fmt: skip


def no_descriptor_left() -> NoReturn:
    raise OSError(errno.EMFILE, "Too many open files")


class Handler(WorkerHandler):
    """Counts the workers that have ended."""

    ended = 0

    def receive(self, frame: FrameFromWorker) -> None:
        raise AssertionError(f"{frame} concerns the process itself")

    def close(self) -> None:
        type(self).ended += 1


def pool_of(program: str, count: int = 2, frozen_s: float = 10.0) -> WorkerPool:
    return WorkerPool(
        count, make_start=start, make_handler=lambda worker: Handler(), frozen_s=frozen_s, program=("-c", program)
    )


@asynccontextmanager
async def running(pool: WorkerPool) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run)
        with anyio.fail_after(60):
            await pool.started.wait()
        yield
        pool.stop(shared=False)


async def replaced(pool: WorkerPool, before: Sequence[WorkerProcess]) -> None:
    """Wait until all workers serve again, and at least one is another one."""
    with anyio.fail_after(60):
        while pool.serving < pool.count or set(pool.processes) == set(before):  # noqa: ASYNC110 - a process comes up
            await anyio.sleep(0.01)


async def test_workers_are_asked_and_stopped() -> None:
    pool = pool_of(OBEDIENT)
    async with running(pool):
        assert (pool.serving, pool.restarts, list(pool.views())) == (2, 0, [])
        await pool.refresh()
        assert await pool.cancel("req-1") == 2
    assert pool.serving == 0


async def test_a_killed_worker_is_replaced_and_the_others_stay(caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of(OBEDIENT)
    async with running(pool):
        killed, other = before = pool.processes
        assert killed.pid is not None
        os.kill(killed.pid, signal.SIGKILL)
        await replaced(pool, before)
        assert other in pool.processes
    assert pool.restarts == 1
    assert "worker 1 was ended by SIGKILL" in caplog.text


async def absent(caplog: pytest.LogCaptureFixture, *reports: str) -> None:
    """Wait until worker 1 has been told of these absent workers, one report after the other."""
    found: list[str] = []
    with anyio.fail_after(60):
        while found != [*reports]:
            await anyio.sleep(0.01)
            found = [each for each in caplog.messages if each.startswith("worker 1: absent:")]


async def test_the_others_accept_connections_for_one_that_does_not_serve(caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of(OBEDIENT, frozen_s=60.0)
    async with running(pool):
        silent = pool.processes[1]
        assert silent.pid is not None
        os.kill(silent.pid, signal.SIGSTOP)
        away, back = "worker 1: absent: 2", "worker 1: absent:"
        await absent(caplog, away)
        os.kill(silent.pid, signal.SIGCONT)
        await absent(caplog, away, back)
        os.kill(silent.pid, signal.SIGKILL)
        await absent(caplog, away, back, away, back)


async def test_a_frozen_worker_is_killed_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of(OBEDIENT, frozen_s=1.5)
    async with running(pool):
        before = pool.processes
        assert before[1].pid is not None
        os.kill(before[1].pid, signal.SIGSTOP)
        await replaced(pool, before)
    assert "worker 2 has not answered for 1.5 s" in caplog.text


@pytest.mark.parametrize(
    ("program", "reason"),
    [(NO_ROOM, "ended with status 1: no room for this worker"), (UNABLE, "cannot serve: no certificate")],
)
async def test_workers_that_cannot_start_say_why(program: str, reason: str) -> None:
    with anyio.fail_after(60):
        failure = await pool_of(program).run()
    assert failure is not None
    assert failure.endswith(reason)


async def test_without_a_descriptor_a_worker_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(OBEDIENT)
    async with running(pool):
        before = pool.processes
        with monkeypatch.context() as full:
            full.setattr("socket.socketpair", no_descriptor_left)
            assert before[0].pid is not None
            os.kill(before[0].pid, signal.SIGKILL)
            with anyio.fail_after(60):
                while pool.restarts < 2:  # noqa: ASYNC110 - a process ends
                    await anyio.sleep(0.01)
        await replaced(pool, before)
        assert before[1] in pool.processes


async def test_a_worker_that_does_not_stop_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of(OBEDIENT.replace("sys.exit()", "pass"), count=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run)
        with anyio.fail_after(60):
            await pool.started.wait()
        pool.stop(shared=False)
        await pool.ended(-8.0)
    assert pool.processes == ()


async def test_cancelling_leaves_no_worker_behind() -> None:
    pool = pool_of(OBEDIENT)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run)
        with anyio.fail_after(60):
            await pool.started.wait()
        pids = [worker.pid for worker in pool.processes]
        tasks.cancel_scope.cancel()
    assert None not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 0, 0)
