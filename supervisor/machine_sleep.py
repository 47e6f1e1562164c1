"""Puts the machine to sleep while nothing is to be done, and finds out when it is awake again."""

from __future__ import annotations

import logging
import shlex
import subprocess
import time
from collections.abc import Callable
from typing import Final, Protocol

import anyio

from hostler.supervisor.config import SleepSettings

logger = logging.getLogger(__name__)

#: How often to check whether the machine may sleep, and whether it is awake again, in seconds.
LOOK_S: Final = 1.0
_AWAKE_LOOK_S: Final = 0.1

#: A longer pause between two looks means that the machine slept, in seconds, and so do so many seconds by its own account.
_GAP_S: Final = 1.0
_SUSPENDED_S: Final = 0.5

#: A machine that was woken waits so long for a gateway to connect again, and then for its requests, in seconds.
CONNECTS_S: Final = 30.0
ASKS_S: Final = 3.0

#: How long the command may take, in seconds: the host grants nothing meanwhile.
COMMAND_S: Final = 60.0

#: How long the command may still take once the machine is awake again, in seconds: gateways wait for that.
ENDS_S: Final = 2.0

#: How long after its command the machine may take to fall asleep, in seconds. Then it is taken to be awake.
FALLS_ASLEEP_S: Final = 20.0


class SleepingHost(Protocol):
    """What is put to sleep."""

    @property
    def idle_since(self) -> float | None:
        """When the last request ended, by `clock`; `None` while the host is in use or to be kept awake."""
        ...

    @property
    def gateways(self) -> int:
        """The number of connected gateways."""
        ...

    def pause(self) -> None:
        """Grant nothing any more: gateways wake the machine for the next request."""
        ...

    def resume(self) -> None:
        """Grant again, over new connections: the old ones may be dead."""
        ...


class MachineSleep:
    """Runs the command of `settings` when `host` has been idle for long enough. `keep_awake` is whether something else
    goes on, such as a download. `suspended_s` is for how long the machine has been suspended since it was started."""

    def __init__(
        self,
        settings: SleepSettings,
        host: SleepingHost,
        *,
        keep_awake: Callable[[], bool] = lambda: False,
        clock: Callable[[], float],
        command_s: float = COMMAND_S,
        falls_asleep_s: float = FALLS_ASLEEP_S,
        asks_s: float = ASKS_S,
        suspended_s: Callable[[], float] | None = None,
    ) -> None:
        self._settings = settings
        self._host = host
        self._keep_awake = keep_awake
        self._clock = clock
        self._command_s = command_s
        self._falls_asleep_s = falls_asleep_s
        self._asks_s = asks_s
        self._suspended_s = suspended_s or _suspended_s
        self._awake_since = clock()

    async def run(self) -> None:
        """Put the machine to sleep, again and again, until cancelled."""
        look_s = min(LOOK_S, self._settings.after_s / 4)
        while True:
            before, looked_at = self._suspended_s(), time.monotonic()
            await anyio.sleep(look_s)
            if self._has_slept(before, looked_at + look_s):
                # Someone else has put it to sleep, and it was not woken to sleep again at once.
                await self._stay_awake()
            elif self._may_sleep():
                # No request can come between this decision and the pause.
                self._host.pause()
                try:
                    await self._sleep()
                finally:
                    self._host.resume()
                await self._stay_awake()

    async def _stay_awake(self) -> None:
        """Give the gateway that has woken the machine the time to connect and to ask."""
        with anyio.move_on_after(CONNECTS_S):
            while not self._host.gateways and self._host.idle_since is not None:  # noqa: ASYNC110 - rare
                await anyio.sleep(_AWAKE_LOOK_S)
            await anyio.sleep(self._asks_s)
        self._awake_since = self._clock()

    def _may_sleep(self) -> bool:
        since, now = self._host.idle_since, self._clock()
        if since is None or self._keep_awake():
            self._awake_since = now
            return False
        return now - max(since, self._awake_since) >= self._settings.after_s

    async def _sleep(self) -> None:
        """Run the command, and return when the machine is awake again or has not fallen asleep."""
        command = self._settings.argv
        logger.info("idle for %g s; putting the machine to sleep (%s)", self._settings.after_s, shlex.join(command))
        before, slept = self._suspended_s(), anyio.Event()
        limit = anyio.CancelScope(deadline=anyio.current_time() + self._command_s)

        async def hurry() -> None:
            await slept.wait()
            limit.deadline = min(limit.deadline, anyio.current_time() + ENDS_S)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, before, slept)
            tasks.start_soon(hurry)
            failure = f"{command[0]} did not end within {self._command_s:g} s"
            with limit:
                failure = await self._run_command(command)
            if failure and not slept.is_set():
                logger.error("the machine cannot be put to sleep (supervisor.sleep): %s", failure)
            else:
                with anyio.move_on_after(self._falls_asleep_s):
                    await slept.wait()
                if slept.is_set():
                    logger.info("the machine is awake again")
                else:
                    logger.warning("the machine did not fall asleep within %g s", self._falls_asleep_s)
            tasks.cancel_scope.cancel()

    async def _run_command(self, command: list[str]) -> str:
        """Run the command; why it failed, or an empty text."""
        try:
            ended = await anyio.run_process(command, check=False, stdin=subprocess.DEVNULL)
        except OSError as error:
            return str(error)
        if ended.returncode == 0:
            return ""
        return f"exit code {ended.returncode}: {ended.stderr.decode('utf-8', 'replace')[-500:]}".strip()

    async def _watch(self, before: float, slept: anyio.Event) -> None:
        """Set `slept` once the machine, or this process, has been suspended and goes on."""
        last = time.monotonic()
        while not self._has_slept(before, last):
            last = time.monotonic()
            await anyio.sleep(_AWAKE_LOOK_S)
        slept.set()

    def _has_slept(self, before: float, expected_at: float) -> bool:
        """Whether the machine, or this process, was suspended since it had been so for `before` seconds. The process was to go
        on at `expected_at`, by `time.monotonic`."""
        return self._suspended_s() - before >= _SUSPENDED_S or time.monotonic() - expected_at >= _GAP_S


def _suspended_s() -> float:
    """For how long the machine has been suspended since it was started, in seconds; 0 where that is not known."""
    boot_clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if boot_clock is None else time.clock_gettime(boot_clock) - time.clock_gettime(time.CLOCK_MONOTONIC)
