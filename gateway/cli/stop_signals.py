"""The signals that ask this process to end, on each system."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import anyio


@contextmanager
def stop_signals() -> Iterator[AsyncIterator[int]]:
    """Receive SIGINT and SIGTERM; on Windows Ctrl-C and Ctrl-Break, which is what service wrappers send."""
    if sys.platform == "win32":
        with handled_signals((signal.SIGINT, signal.SIGBREAK, signal.SIGTERM)) as numbers:
            yield numbers
    else:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            yield signals


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP, on Windows Ctrl-Break, end a command as Ctrl-C does: what it has begun is cleaned up.

    Signals that are ignored stay so, as for `nohup`.
    """
    names = ("SIGTERM", "SIGBREAK") if sys.platform == "win32" else ("SIGTERM", "SIGHUP")
    numbers = [number for name in names if signal.getsignal(number := getattr(signal, name)) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def handled_signals(numbers: Sequence[int]) -> Iterator[AsyncIterator[int]]:
    """Receive signals through Python's own handlers, for event loops that handle none."""
    loop = asyncio.get_running_loop()
    send, receive = anyio.create_memory_object_stream[int](16)

    def put(number: int) -> None:
        try:
            send.send_nowait(number)
        except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # as many as this say nothing more

    def handle(number: int, _: FrameType | None) -> None:
        loop.call_soon_threadsafe(put, number)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        with send, receive:
            yield receive
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
