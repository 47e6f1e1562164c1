"""Signals that ask the process to end, through the event loop and through Python's own handlers."""

from __future__ import annotations

import signal

import anyio
import pytest

from hostler.gateway.cli.stop_signals import ended_by_signals, handled_signals, stop_signals

pytestmark = pytest.mark.anyio


async def test_signals_are_received_and_the_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with anyio.fail_after(20):
        with stop_signals() as numbers:
            signal.raise_signal(signal.SIGTERM)
            assert await anext(numbers) == signal.SIGTERM
        with handled_signals((signal.SIGTERM, signal.SIGINT)) as numbers:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)
                assert await anext(numbers) == number
            for _ in range(40):  # more than are kept
                signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


async def test_a_command_is_ended_as_by_ctrl_c() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        before = signal.signal(number, signal.SIG_DFL)  # the tests may run below `nohup`
        try:
            with pytest.raises(KeyboardInterrupt), ended_by_signals():
                signal.raise_signal(number)
            assert signal.getsignal(number) is signal.SIG_DFL
        finally:
            signal.signal(number, before)


async def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
