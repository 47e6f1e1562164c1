"""The GPUs of a host over time: their names, what models may take of them, and what other programs do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from hostler.supervisor.config import DeviceSettings
from hostler.supervisor.contract import DeviceStatus
from hostler.supervisor.devices.reading import DeviceReading, by_name

#: Other programs need memory if they have taken so much more since the last load, in bytes, ...
GROWTH: Final = 256 * 1024**2

#: ... and less than this is free, in bytes or as a part of the device, whichever is more.
SPARE: Final = 1024**3
SPARE_SHARE: Final = 0.05

#: Memory counts as that of other programs once it was seen for so long, in seconds.
SETTLED_S: Final = 4.0

#: An engine, by its model and generation.
EngineId = tuple[str, int]


class DeviceTracker:
    """Follows the devices by their readings. `statuses` are the current ones, first as configured.

    A driver frees the memory of a process some time after its end, and an engine that starts is read before it has what
    it needs. So the memory of others is judged only while no engine starts or stops, and it grows only after a while.
    """

    def __init__(self, settings: Mapping[str, DeviceSettings], *, yield_to_others: bool = False) -> None:
        # Sent as JSON, which has no `Size`.
        self._budgets = {name: None if each.budget is None else int(each.budget) for name, each in settings.items()}
        self._yields = yield_to_others
        # Since when others seem to have more, and the least of it since then.
        self._growing: dict[str, tuple[float, int]] = {}
        self._others: dict[str, int] = {}
        self._at_load: dict[str, int] = {}
        self._engines: frozenset[EngineId] = frozenset()
        self.statuses = tuple(
            DeviceStatus(name=name, budget_bytes=budget, capacity_bytes=budget)
            for name, budget in sorted(self._budgets.items())
        )

    def update(
        self, readings: Sequence[DeviceReading], engines: Mapping[EngineId, Mapping[str, int]], now: float, *,
        steady: bool,
    ) -> None:  # fmt: skip
        """Apply readings of all devices. `engines` is what each running engine has of each device, in bytes; `steady`:
        none of them starts or stops. `now` is in seconds."""
        named = by_name(readings)
        loaded = {name: sum(amounts.get(name, 0) for amounts in engines.values()) for name in named}
        if steady:
            for name, reading in named.items():
                if reading.used is not None:
                    self._follow_others(name, max(0, reading.used - loaded[name]), now)
            if not self._engines.issuperset(engines):
                self._at_load = dict(self._others)
            self._engines = frozenset(engines)
        statuses = [self._status(name, reading, loaded[name]) for name, reading in named.items()]
        statuses += [status for status in self.statuses if status.name not in named]
        self.statuses = tuple(statuses)

    def _follow_others(self, name: str, amount: int, now: float) -> None:
        if amount <= self._others.setdefault(name, amount):
            self._others[name] = amount
            self._growing.pop(name, None)
            return
        since, least = self._growing.get(name, (now, amount))
        self._growing[name] = since, min(least, amount)
        if now - since >= SETTLED_S:
            self._others[name] = min(least, amount)
            del self._growing[name]

    def _status(self, name: str, reading: DeviceReading, loaded: int) -> DeviceStatus:
        budget, others = self._budgets.get(name), self._others.get(name, 0)
        capacity = None
        if name in self._budgets:
            left = None if reading.total is None else max(0, reading.total - others)
            capacity = min((limit for limit in (budget, left) if limit is not None), default=None)
        return DeviceStatus(
            name=name, vendor=reading.vendor, model=reading.model, id=reading.id, total_bytes=reading.total,
            used_bytes=reading.used, other_bytes=others, budget_bytes=budget,
            capacity_bytes=capacity, utilization=reading.utilization, temperature_c=reading.temperature_c,
            power_w=reading.power_w, unified=reading.unified, driver=reading.driver,
            yielding=self._yields and self._is_needed(name, reading, loaded, capacity),
        )  # fmt: skip

    def _is_needed(self, name: str, reading: DeviceReading, loaded: int, capacity: int | None) -> bool:
        """Whether other programs need memory that models have."""
        if not loaded or reading.used is None or reading.total is None:
            return False
        if self._others.get(name, 0) - self._at_load.get(name, 0) < GROWTH:
            return False
        spare = max(SPARE, int(reading.total * SPARE_SHARE))
        return reading.total - reading.used < spare or (capacity is not None and loaded > capacity)
