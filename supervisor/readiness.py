"""When a starting engine is ready, and when a running one no longer responds: both are polled."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import anyio

from hostler.profiles.engines import ReadyRules
from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.engine_client import accepts_connections, get_status
from hostler.supervisor.port_owner import owns_port

#: A poll of a port that refuses connections costs 16 microseconds, one of a loading engine 380.
MIN_POLL_S: Final = 0.002
MAX_POLL_S: Final = 0.25

#: Between two polls a start may wait this part of the time that it has taken: 25 ms after 2.5 seconds.
POLL_SHARE: Final = 1 / 100

#: How a llama-server that was started as a router's child reports its state on stdout.
_STATE_LINE: Final = "cmd_child_to_router:state:"

#: A llama-server's.
LLAMA_SERVER: Final = ReadyRules(path="/health")


class Readiness:
    """One start of one engine. `progress` is the loaded share, 0 to 1, and `context` what one request gets, if reported.

    `anywhere`: any process may listen at the engine's port, not only the engine itself.
    """

    def __init__(self, rules: ReadyRules = LLAMA_SERVER, *, anywhere: bool = False) -> None:
        self._rules = rules
        self._anywhere = anywhere
        self._log = None if rules.log is None else re.compile(rules.log)
        self.reported_ready = False
        self.progress: float | None = None
        self.context = 0
        self._changed = anyio.Event()

    def on_line(self, line: str) -> None:
        """Take a line of output: one that the rules wait for makes them true."""
        if self._log is not None and self._log.search(line):
            self._log = None
            self._changed.set()

    def on_stdout(self, line: str) -> bool:
        """Take a line of standard output. Returns whether it was a state report rather than a log line."""
        if not line.startswith(_STATE_LINE):
            return False
        report = _decode_report(line)
        if report.get("state") == "ready":
            self.reported_ready = True
            self.progress = 1.0
            self.context = _context_of(report)
        elif report.get("state") == "loading":
            value = report.get("payload", {}).get("value")
            if isinstance(value, int | float):
                self.progress = min(1.0, max(0.0, float(value)))
        self._changed.set()
        return True

    async def wait(self, pid: int, host: str, port: int, key: str, *, on_first_response: Callable[[], None]) -> None:
        """Return when the process `pid` serves at `port`. Responses of another process there do not count.

        `on_first_response` is called at the first response, which may be that the model still loads.
        """
        started = time.monotonic()
        responded = False
        ours = self._anywhere
        while True:
            self._changed = anyio.Event()
            responds, ready = await self._poll(host, port, key)
            if responds and not responded:
                responded = True
                on_first_response()
            if responds and not ours:
                # Usually found out while the model loads, so that it costs nothing when it is ready.
                ours = self.reported_ready or await _is_ours(pid, host, port, key)
            if ready and ours and self._log is None:
                return
            with anyio.move_on_after(MIN_POLL_S if self.reported_ready else poll_pause_s(time.monotonic() - started)):
                await self._changed.wait()

    async def _poll(self, host: str, port: int, key: str) -> tuple[bool, bool]:
        """Whether something responds at the port, and whether that is the response of a ready engine."""
        rules = self._rules
        if rules.path is None:
            # A line of the log alone says that it is ready, but not that it listens.
            found = await accepts_connections(host, port, timeout_s=0.5)
            return found, found
        status = await get_status(host, port, rules.path, timeout_s=0.5, key=key)
        wanted = status is not None and (200 <= status < 300 if rules.status is None else status == rules.status)
        return status is not None, wanted


def poll_pause_s(taken_s: float) -> float:
    """Seconds from one poll to the next while a start has taken `taken_s`."""
    return min(MAX_POLL_S, max(MIN_POLL_S, taken_s * POLL_SHARE))


async def responds(address: EngineAddress, rules: ReadyRules, *, timeout_s: float) -> bool:
    """Whether the engine answers the request for its readiness, whatever it answers."""
    if rules.path is None:
        return await accepts_connections(address.host, address.port, timeout_s=timeout_s)
    status = await get_status(address.host, address.port, rules.path, timeout_s=timeout_s, key=address.key)
    return status is not None


async def wait_until_unresponsive(address: EngineAddress, limit_s: float, rules: ReadyRules = LLAMA_SERVER) -> None:
    """Return when the engine has answered no poll for `limit_s`. Busy engines answer `/health` all the same.

    One failed poll is not enough: this process may have been held up. With a limit of 0 this never returns.
    """
    if limit_s <= 0:
        await anyio.sleep_forever()
    pause = limit_s / 4
    last_response = time.monotonic()
    failed = 0
    while failed < 2 or time.monotonic() - last_response < limit_s:
        await anyio.sleep(pause)
        asked = time.monotonic()
        if await responds(address, rules, timeout_s=pause):
            last_response, failed = asked, 0
            continue
        failed += 1
        if time.monotonic() - asked < pause / 2:
            # Refused at once: the process still exists, so do not poll faster than otherwise.
            await anyio.sleep(pause / 2)


async def _is_ours(pid: int, host: str, port: int, key: str) -> bool:
    """Whether the server at `port` is the process `pid`.

    If the system cannot report that, a server that accepts the engine's key and refuses another one is the engine: no other
    process has the key.
    """
    owner = await owns_port(pid, port)
    if owner is not None:
        return owner
    own = await get_status(host, port, "/v1/models", timeout_s=1.0, key=key)
    other = await get_status(host, port, "/v1/models", timeout_s=1.0, key=secrets.token_urlsafe(8))
    return own == 200 and other in (401, 403)


def _decode_report(line: str) -> dict[str, Any]:
    try:
        report = json.loads(line[len(_STATE_LINE) :])
    except ValueError:
        return {}
    if not isinstance(report, dict) or not isinstance(report.get("payload", {}), dict):
        return {}
    return report


def _context_of(report: dict[str, Any]) -> int:
    """The context that one request really gets, as the engine reports it."""
    meta = report.get("payload", {}).get("meta")
    value = meta.get("n_ctx") if isinstance(meta, dict) else None
    return value if isinstance(value, int) else 0
