"""The program of a worker process, which the main process starts: `python -m hostler.gateway.worker DESCRIPTOR`."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from typing import Final

import anyio

from hostler import __version__
from hostler.gateway.config import ConfigError
from hostler.gateway.server.event_loop import Loop
from hostler.gateway.server.process_memory import freeze_garbage_collector, return_large_buffers
from hostler.gateway.server.server import ListenError, Server, server_certificate
from hostler.gateway.worker_app import WorkerApp
from hostler.gateway.workers.channel import Channel
from hostler.gateway.workers.frames import (
    AbsentWorkers,
    CancelRequests,
    FrameToWorker,
    KeyAdmitted,
    ModelsRefreshed,
    MoneyReserved,
    RequestsCancelled,
    StateQuery,
    StopWorker,
    WorkerFailed,
    WorkerReady,
    WorkerStart,
    WorkerState,
    frames_to_worker,
)
from hostler.gateway.workers.log_entries import ChannelLogHandler
from hostler.gateway.workers.stand_in import StandIn

#: What these log, the main process logs as well, since it watches the same hosts and backends.
_REPEATED: Final = (
    "hostler.gateway.joining_hosts",
    "hostler.supervisor.remote_host",
    "hostler.supervisor.client",
    "hostler.gateway.backends.registry",
)

#: Of several workers only the first one logs what these do.
_ONCE: Final = ("hostler.supervisor.tls", "hostler.adapters.registry")

#: How long the last frames may take to be sent, in seconds.
_LAST_FRAMES_S: Final = 1.0

#: The exit status of a worker that cannot serve, and of one whose main process has ended.
_FAILED: Final = 1


class _Worker:
    """One worker: its end of the channel, its application, and its server."""

    def __init__(self) -> None:
        self._start: WorkerStart | None = None
        self._started = anyio.Event()
        self._channel: Channel[FrameToWorker] | None = None
        self._app: WorkerApp | None = None
        self._server: Server | None = None
        self._stand_in: StandIn | None = None
        self._early: list[FrameToWorker] = []
        self._stop_requested: StopWorker | None = None
        self._signalled = False

    async def run(self, descriptor: int) -> int:
        """Serve until the main process says otherwise. Returns the exit status."""
        channel = self._channel = Channel(frames_to_worker(), self._receive)
        await channel.connect(socket.socket(fileno=descriptor))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_exit_with, channel)
            tasks.start_soon(self._handle_signals)
            await self._started.wait()
            status = await self._serve(channel)
            tasks.cancel_scope.cancel()
        channel.close()
        with anyio.move_on_after(_LAST_FRAMES_S):
            await channel.closed.wait()
        return status

    async def _serve(self, channel: Channel[FrameToWorker]) -> int:
        start = self._start
        assert start is not None
        once = () if start.number == 1 else _ONCE
        logging.basicConfig(
            level=start.log_level, handlers=[ChannelLogHandler(channel, repeated=(*_REPEATED, *once))], force=True
        )
        if start.release != __version__:
            channel.send(
                WorkerFailed(f"is of release {__version__}, the running gateway of {start.release}; restart it")
            )
            return _FAILED
        try:
            app = self._app = WorkerApp(start, channel)
            certificate = server_certificate(start.settings.gateway.tls, "gateway.tls")
        except (ConfigError, ListenError) as error:
            channel.send(WorkerFailed(f"cannot serve: {error}"))
            return _FAILED
        for frame in self._early:
            app.receive(frame)
        self._early.clear()
        self._server = Server(
            app.app,
            drain_s=start.settings.gateway.drain_s,
            lifespan=True,
            shared=True,
            started_callback=self._on_ready,
            certificate=certificate,
        )
        others = {each: [_listening(number) for number in own] for each, own in start.others.items()}
        self._stand_in = StandIn(others, self._server.accept_from)
        if self._stop_requested is not None:
            self._stop(self._stop_requested)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._stand_in.run)
            await self._server.serve([_listening(number) for number in start.sockets])
            tasks.cancel_scope.cancel()
        return 0

    def _on_ready(self) -> None:
        assert self._channel is not None
        freeze_garbage_collector()
        self._channel.send(WorkerReady())

    def _receive(self, frame: FrameToWorker) -> None:
        assert self._channel is not None
        match frame:
            case WorkerStart():
                self._start = frame
                self._started.set()
            case StateQuery():
                in_flight = () if self._app is None else self._app.in_flight()
                self._channel.send(WorkerState(frame.number, in_flight))
            case CancelRequests():
                count = 0 if self._app is None else self._app.cancel(frame.request_id)
                self._channel.send(RequestsCancelled(frame.number, count))
            case KeyAdmitted():
                self._channel.answered(frame.number, frame.admission)
            case MoneyReserved():
                self._channel.answered(frame.number, frame.reserved)
            case ModelsRefreshed():
                self._channel.answered(frame.number, frame.asked)
            case AbsentWorkers():
                if self._stand_in is not None and self._server is not None and self._server.started:
                    self._stand_in.update(frame.numbers)
            case StopWorker() if self._signalled:
                self._signalled = False  # the main process asks for the first time: that is no hurry
            case StopWorker():
                self._stop(frame)
            case _ if self._app is None:
                self._early.append(frame)
            case _:
                self._app.receive(frame)

    def _stop(self, frame: StopWorker) -> None:
        self._stop_requested = frame
        if self._app is not None:
            self._app.shut_down()
        if self._stand_in is not None:
            self._stand_in.close()
        if self._server is not None:
            self._server.shared = frame.shared
            self._server.stop()

    async def _handle_signals(self) -> None:
        """The terminal's Ctrl-C is for the main process. A SIGTERM ends this one after its requests: it may be for this
        process alone, or for all, as a service manager sends it."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                if number == signal.SIGTERM and self._stop_requested is None:
                    self._signalled = True
                    self._stop(StopWorker(shared=True))


async def _exit_with(channel: Channel[FrameToWorker]) -> None:
    """A worker without its main process is of no use: its clients see the end of their connections."""
    await channel.closed.wait()
    os._exit(_FAILED)


def _listening(number: int) -> socket.socket:
    sock = socket.socket(fileno=number)
    sock.set_inheritable(False)
    return sock


def main() -> int:
    """Run the worker whose end of the channel is the descriptor of that number."""
    return_large_buffers()
    worker, descriptor = _Worker(), int(sys.argv[1])
    return anyio.run(worker.run, descriptor, backend_options={"loop_factory": Loop})


if __name__ == "__main__":
    sys.exit(main())
