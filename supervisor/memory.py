"""How much memory an engine takes: declared, estimated, measured, remembered. Only `MemoryMeter` looks at the machine."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.contract import Failure
from hostler.supervisor.engine_command import argument_number, argument_value, physical_batch_size
from hostler.supervisor.state_store import JsonStore

MIB = 1024**2
GIB = 1024**3

# The engine itself without a model. Measured: 40 MiB for the embedded one.
PROCESS_BYTES = 48 * MIB

# Vocabularies of current models have 32,000 to 262,000 tokens; headers seldom give the number without the list itself.
USUAL_VOCABULARY = 131_072

# Working memory per token of a physical batch besides the logits, in multiples of the embedding length.
_ROWS = 12

# Bytes per value relative to f16, including the scales of blocks of 32.
_CACHE_TYPES = {
    "f32": 2.0,
    "f16": 1.0,
    "bf16": 1.0,
    "q8_0": 34 / 64,
    "q5_1": 24 / 64,
    "q5_0": 22 / 64,
    "q4_1": 20 / 64,
    "q4_0": 18 / 64,
    "iq4_nl": 18 / 64,
}


class PeakMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The most that an engine was measured to take, in bytes. `settled` once it was measured after a response."""

    rss: int = 0
    gpu: int = 0
    settled: bool = False

    @property
    def bytes(self) -> int:
        """What counts against the budget: GPU memory if the engine uses any, else resident memory."""
        return self.gpu or self.rss


class MemoryUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The memory that a process and its descendants take now, in bytes."""

    rss: int = 0
    gpu: int = 0


class MemoryNeed(msgspec.Struct, frozen=True, kw_only=True):
    """The memory that an engine will take, in bytes, and the source of the number."""

    total: int
    weights: int = 0
    cache: int = 0
    other: int = 0
    declared: bool = False
    measured: bool = False

    def __str__(self) -> str:
        if self.declared:
            return f"{gib(self.total)} GiB (declared)"
        if self.measured:
            return f"{gib(self.total)} GiB (measured)"
        return (
            f"{gib(self.total)} GiB ({gib(self.weights)} weights + {gib(self.cache)} cache + {gib(self.other)} other)"
        )


def update_peak(before: PeakMemory | None, usage: MemoryUsage, *, settled: bool = False) -> PeakMemory:
    """The peak after one more measurement. `settled` if the engine has answered since it was started."""
    before = before or PeakMemory()
    return PeakMemory(rss=max(before.rss, usage.rss), gpu=max(before.gpu, usage.gpu), settled=before.settled or settled)


def memory_need(profile: Profile, facts: ModelFacts | None, peak: PeakMemory | None = None) -> MemoryNeed:
    """The memory that an engine of `profile` will take.

    A declared size wins. Else it is the estimate from the file's header, raised by a higher measurement. A lower one
    counts only once it is settled, since engines take their memory while they work.
    """
    if profile.memory is not None:
        return MemoryNeed(total=profile.memory, declared=True)
    estimated = _estimated(profile, facts)
    if peak is not None and peak.bytes and (peak.settled or peak.bytes > estimated.total):
        return MemoryNeed(total=peak.bytes, measured=True)
    return estimated


def fits(wanted: MemoryNeed, *, budget: int, used: int = 0) -> bool:
    """Whether `wanted` fits into `budget` beside models that take `used` bytes."""
    return used + wanted.total <= budget


def does_not_fit(profile: Profile, wanted: MemoryNeed, budget: int, *, beside: Sequence[str] = ()) -> Failure:
    """The failure of a model that is larger than the budget, or than what pinned models (`beside`) leave of it."""
    if beside:
        message = f"{profile.name} needs {wanted}, which does not fit into {gib(budget)} GiB beside pinned "
        message += f"{', '.join(beside)}: raise memory_budget, or unpin"
        return Failure(kind="does_not_fit", message=message)
    ways = ["raise memory_budget"]
    if wanted.cache > wanted.total - budget:
        ways.append("lower this profile's context or parallel")
    if wanted.cache and "-ctk" not in profile.args and "--cache-type-k" not in profile.args:
        ways.append("store the cache as q8_0 (args: -ctk q8_0 -ctv q8_0 -fa on)")
    ways.append("use a smaller quantization")
    advice = ", or ".join([", ".join(ways[:-1]), ways[-1]])
    message = f"{profile.name} needs {wanted}; the budget is {gib(budget)} GiB: {advice}"
    return Failure(kind="does_not_fit", message=message)


class MemoryClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A running model as a candidate for eviction. `idle_since` is in seconds since the epoch."""

    name: str
    bytes: int
    idle_since: float
    busy: bool = False
    pinned: bool = False


def choose_evictions(wanted: MemoryNeed, running: Sequence[MemoryClaim], budget: int) -> tuple[str, ...] | None:
    """Which models to evict so that `wanted` fits: idle ones, least recently used first, and none that need not go.

    Busy and pinned ones stay. `None` if it does not fit even then.
    """
    used = sum(claim.bytes for claim in running)
    victims: list[MemoryClaim] = []
    for claim in sorted(running, key=lambda claim: claim.idle_since):
        if fits(wanted, budget=budget, used=used):
            break
        if not claim.busy and not claim.pinned:
            victims.append(claim)
            used -= claim.bytes
    if not fits(wanted, budget=budget, used=used):
        return None
    # A small one may have been chosen before a large one turned out to be enough.
    for claim in list(victims):
        if fits(wanted, budget=budget, used=used + claim.bytes):
            victims.remove(claim)
            used += claim.bytes
    return tuple(claim.name for claim in victims)


def gib(size: int) -> str:
    """Bytes as GiB with one decimal, below 0.1 with two."""
    value = size / GIB
    return f"{value:.1f}" if value >= 0.1 or size == 0 else f"{value:.2f}"


def _estimated(profile: Profile, facts: ModelFacts | None) -> MemoryNeed:
    """From the header; without one only the process itself is counted."""
    facts = facts or ModelFacts()
    tokens = argument_number(profile.args, "-c", "--ctx-size", "--context-size")
    if tokens is None or tokens <= 0:
        tokens = profile.context * profile.parallel or facts.training_context
    scale = sum(_cache_scale(profile, *names) for names in (("-ctk", "--cache-type-k"), ("-ctv", "--cache-type-v"))) / 2
    cache = int(facts.kv_bytes_per_token * tokens * scale)
    batch = physical_batch_size(profile)
    vocabulary = facts.metadata.get(f"{facts.architecture}.vocab_size")
    logits = vocabulary if isinstance(vocabulary, int) else USUAL_VOCABULARY
    working = 4 * batch * (logits + _ROWS * facts.embedding_length) if facts.bytes else 0
    other = PROCESS_BYTES + working + max(0, profile.cache_ram_mib) * MIB
    return MemoryNeed(total=facts.bytes + cache + other, weights=facts.bytes, cache=cache, other=other)


def _cache_scale(profile: Profile, *names: str) -> float:
    return _CACHE_TYPES.get((argument_value(profile.args, *names) or "f16").lower(), 1.0)


class MemoryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A remembered peak. `key` identifies the file and arguments that it was measured with."""

    key: str
    seen: PeakMemory


class MemoryHistory:
    """How much memory each model's engine took, remembered over restarts of the supervisor."""

    def __init__(self, file: Path | None = None) -> None:
        self._store = JsonStore(file, dict[str, MemoryRecord], contents="the memory history")
        self._records: dict[str, MemoryRecord] = {}

    def get(self, model: str, key: str) -> PeakMemory | None:
        """The peak of `model`, if it was measured with the file and arguments of `key`."""
        record = self._records.get(model)
        return record.seen if record is not None and record.key == key else None

    def record(self, model: str, key: str, peak: PeakMemory) -> bool:
        """Remember a peak. Whether it is worth a `write`: it is newly settled, or differs by more than 5 %."""
        before = self.get(model, key) or PeakMemory()
        if before.settled == peak.settled and not differs(before.rss, peak.rss) and not differs(before.gpu, peak.gpu):
            return False
        self._records[model] = MemoryRecord(key=key, seen=peak)
        return True

    def read(self) -> None:
        """Load the stored history."""
        self._records = (self._store.read() or {}) | self._records

    def write(self) -> None:
        """Store the history."""
        self._store.write(lambda: dict(self._records))


def differs(before: int, now: int) -> bool:
    """Whether two amounts differ by more than 5 %."""
    return abs(now - before) * 20 > max(before, now)


class MemoryMeter:
    """Measures how much memory processes take; on GPUs if NVIDIA's library is installed and finds a device.

    `nvml` replaces that library; with `load=False` none is loaded.
    """

    def __init__(self, nvml: Any = None, *, load: bool = True) -> None:
        self._nvml = nvml
        self._load = load and nvml is None
        self._ready = False

    def measure(self, pid: int) -> MemoryUsage:
        """The memory that the process and its descendants take now; zero if it has exited. Blocks for milliseconds."""
        rss = 0
        pids: set[int] = set()
        for each in _with_descendants(pid):
            try:
                rss += psutil.Process(each).memory_info().rss
                pids.add(each)
            except psutil.Error:
                continue
        return MemoryUsage(rss=rss, gpu=self._gpu(pids) if pids else 0)

    def close(self) -> None:
        """Shut down NVIDIA's library."""
        if self._ready:
            self._ready = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                pass

    def _gpu(self, pids: set[int]) -> int:
        nvml = self._library()
        if nvml is None:
            return 0
        total = 0
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                running = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(index))
                total += _used_by(running, pids)
        except nvml.NVMLError:
            return total
        return total

    def _library(self) -> Any:
        """The initialised library; `None` where there is none. Looked for once."""
        if self._load:
            self._load = False
            try:
                self._nvml = importlib.import_module("pynvml")
            except ImportError:
                self._nvml = None
        if self._nvml is not None and not self._ready:
            try:
                self._nvml.nvmlInit()
                self._ready = True
            except self._nvml.NVMLError:  # the package without a driver
                self._nvml = None
        return self._nvml


def _with_descendants(pid: int) -> list[int]:
    found = [pid]
    try:
        for parent in found:
            # Linux lists children per thread; elsewhere every process must be read.
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        if len(found) == 1 and not Path(f"/proc/{pid}/task/{pid}/children").exists():
            found += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except (OSError, psutil.Error):
        pass
    return found


def _used_by(running: Iterable[Any], pids: set[int]) -> int:
    # In a container the driver may not report how much a process takes.
    return sum(process.usedGpuMemory or 0 for process in running if process.pid in pids)
