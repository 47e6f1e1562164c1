"""What a host's engines take and whether they are at work: looked at now and then, and whenever it decides something."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from hostler.supervisor.engine_client import engine_activity
from hostler.supervisor.memory import MemoryMeter, PeakMemory
from hostler.supervisor.model import ManagedModel
from hostler.supervisor.state_store import JsonStore


class MemoryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen, and of what: another file or other arguments make `key` another one."""

    key: str
    seen: PeakMemory


class MemoryHistory:
    """One for each model. Without a file they are forgotten at the end."""

    def __init__(self, file: Path | None = None) -> None:
        self._note = JsonStore(file, dict[str, MemoryRecord])
        self._known: dict[str, MemoryRecord] = {}

    def get(self, model: str, key: str) -> PeakMemory | None:
        """What was seen of `model` while it was what `key` says."""
        known = self._known.get(model)
        return known.seen if known is not None and known.key == key else None

    def learn(self, model: str, key: str, seen: PeakMemory) -> bool:
        """This was seen of it. Whether that is worth writing down: by more than a twentieth, or of more weight."""
        before = self.get(model, key) or PeakMemory()
        if before.settled == seen.settled and not differs(before.rss, seen.rss) and not differs(before.gpu, seen.gpu):
            return False
        self._known[model] = MemoryRecord(key=key, seen=seen)
        return True

    def read(self) -> None:
        """Take over what the file remembers."""
        self._known = (self._note.read() or {}) | self._known

    def write(self) -> None:
        """Keep what is known. Not being able to is not worth a failure."""
        with contextlib.suppress(OSError):
            self._note.write(lambda: dict(self._known))


def differs(before: int, now: int) -> bool:
    """By more than a twentieth, which is worth telling."""
    return abs(now - before) * 20 > max(before, now)


#: How often is looked, besides when engines get ready, first answer, and end.
PERIOD_S: Final = 15.0

#: After it got ready the first request goes before the first look.
AFTER_READY_S: Final = 0.2

#: Between two questions whether an engine is still at work: see `engine_activity`.
ASK_S: Final = 1.5

logger = logging.getLogger(__name__)


class UsageMonitor:
    """Looks at members and tells them what it saw.

    `changed` is called with a member of which another amount is known than before, whether that is what it takes now,
    and whether it is what it needs. With `uses` it also follows who is used, for whoever has to choose. Who has to go
    may finish its answers for `drain_s`, unless its profile says otherwise.
    """

    def __init__(
        self, meter: MemoryMeter, footprints: MemoryHistory, changed: Callable[[ManagedModel, bool, bool], None], *, uses: bool,
        drain_s: float,
    ) -> None:  # fmt: skip
        self._meter = meter
        self._footprints = footprints
        self._changed = changed
        self._uses = uses
        self._drain_s = drain_s

    async def run(self, members: Callable[[], Iterable[ManagedModel]]) -> None:
        """Look at all of them every now and then, for ever."""
        try:
            while True:
                await anyio.sleep(PERIOD_S)
                for member in list(members()):
                    await self.measure(member)
                    if self._uses:
                        await self._look(member)
        finally:
            self._meter.close()

    async def measure(self, member: ManagedModel, settled: bool = False, after_s: float = 0.0) -> None:
        """Look what a member's processes take; told only if it is another amount than before."""
        await anyio.sleep(after_s)
        pid = member.process.pid
        if pid is None:
            return
        try:
            usage = await anyio.to_thread.run_sync(self._meter.measure, pid)
        except Exception:
            # Drivers fail in many ways, and none of them may end a host.
            logger.exception("what %s takes could not be measured", member.name)
            return
        if member.process.pid != pid or not usage.rss:
            return
        before, need = member.usage, member.need.total
        member.measured(usage, settled=settled)
        if member.seen is not None and self._footprints.learn(member.name, member.footprint, member.seen):
            await anyio.to_thread.run_sync(self._footprints.write)
        takes = differs(before.rss, usage.rss) or differs(before.gpu, usage.gpu)
        needs = differs(need, member.need.total)
        if takes or needs:
            self._changed(member, takes, needs)

    def recall(self, member: ManagedModel) -> None:
        """Tell a member whose file is known what was seen of such a one before, also by an earlier supervisor."""
        member.recalled = self._footprints.get(member.name, member.footprint)

    async def look_at(self, members: Iterable[ManagedModel]) -> None:
        """Ask the engines of all of them whether they are at work."""
        async with anyio.create_task_group() as looks:
            for member in members:
                looks.start_soon(self._look, member)

    async def drain(self, members: Iterable[ManagedModel], say: Callable[[], None]) -> None:
        """Return when all have finished their answers, or are gone, or had their time; `say` if that takes any."""
        async with anyio.create_task_group() as waits:
            for member in members:
                waits.start_soon(self._until_idle, member, say)

    async def _until_idle(self, member: ManagedModel, say: Callable[[], None]) -> None:
        own = member.profile.drain_s
        with anyio.move_on_after(self._drain_s if own is None else own):
            while await self._look(member):
                say()
                with anyio.move_on_after(ASK_S):
                    await member.process.ended()

    async def _look(self, member: ManagedModel) -> bool:
        """Whether its engine is at work."""
        address = member.process.address
        if address is None:
            return False
        told = await engine_activity(address)
        if member.process.generation == address.generation:
            member.active(told, time.time())
        return member.busy
