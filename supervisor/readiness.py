"""Whether an engine serves: what it says on its pipe, what it answers on its port, and whether it still does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

import anyio

from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.health import belongs_to, get_status, reachable

#: A question to a port where nobody listens yet costs some 50 microseconds, one to a loading engine ten times that.
FIRST_POLL_S: Final = 0.002
LONGEST_POLL_S: Final = 0.25

#: Between two questions a start may wait this part of the time that it has taken: 25 ms after 2.5 seconds.
POLL_SHARE: Final = 1 / 100

_STATE_LINE: Final = "cmd_child_to_router:state:"

#: On standard input it ends an engine that speaks this protocol.
EXIT_LINE: Final = b"cmd_router_to_child:exit"


class Readiness:
    """One start of one engine. `progress` is how much is loaded, 0 to 1, and `context` what a request gets, if it says so."""

    def __init__(self) -> None:
        self.says_ready = False
        self.progress: float | None = None
        self.context = 0
        self._news = anyio.Event()

    def hear(self, line: str) -> bool:
        """A line of standard output. Whether it was about the engine's state, and no output for people."""
        if not line.startswith(_STATE_LINE):
            return False
        news = _decoded(line)
        if news.get("state") == "ready":
            self.says_ready = True
            self.progress = 1.0
            self.context = _context_of(news)
        elif news.get("state") == "loading":
            value = news.get("payload", {}).get("value")
            if isinstance(value, int | float):
                self.progress = min(1.0, max(0.0, float(value)))
        self._news.set()
        return True

    async def until_answers(self, pid: int, host: str, port: int, key: str, *, answering: Callable[[], None]) -> None:
        """Return when the process `pid` serves at `port`. Somebody else's answer there does not count.

        `answering` is called at the first answer, which may be that it still loads.
        """
        began = time.monotonic()
        answers = ours = False
        while True:
            self._news = anyio.Event()
            status = await get_status(host, port, "/health", timeout_s=0.5)
            if status is not None and not answers:
                answers = True
                answering()
            if status is not None and not ours:
                # Usually found out while it loads, so that it costs nothing when it is ready.
                ours = self.says_ready or await belongs_to((pid,), host, port, key)
            if status == 200 and ours:
                return
            pause = min(LONGEST_POLL_S, max(FIRST_POLL_S, (time.monotonic() - began) * POLL_SHARE))
            with anyio.move_on_after(FIRST_POLL_S if self.says_ready else pause):
                await self._news.wait()


async def until_silent(address: EngineAddress, limit_s: float) -> None:
    """Return when the engine has answered no question for `limit_s`; a busy one answers `/health` all the same.

    One question in vain is not enough: it may have been us who were held up. With a limit of 0 nothing is asked and
    this never returns.
    """
    if limit_s <= 0:
        await anyio.sleep_forever()
    pause = limit_s / 4
    last_answer = time.monotonic()
    in_vain = 0
    while in_vain < 2 or time.monotonic() - last_answer < limit_s:
        await anyio.sleep(pause)
        asked = time.monotonic()
        if await get_status(reachable(address.host), address.port, "/health", timeout_s=pause) is not None:
            last_answer, in_vain = asked, 0
            continue
        in_vain += 1
        if time.monotonic() - asked < pause / 2:
            # Refused at once: it is still there, so give it the rest of the time, without a hurry.
            await anyio.sleep(pause / 2)


def _decoded(line: str) -> dict[str, Any]:
    try:
        news = json.loads(line[len(_STATE_LINE) :])
    except ValueError:
        return {}
    if not isinstance(news, dict) or not isinstance(news.get("payload", {}), dict):
        return {}
    return news


def _context_of(news: dict[str, Any]) -> int:
    """The context that one request really gets, as the engine says it."""
    meta = news.get("payload", {}).get("meta")
    value = meta.get("n_ctx") if isinstance(meta, dict) else None
    return value if isinstance(value, int) else 0
