"""How much memory an engine takes: declared, estimated, measured, remembered. `memory_meter` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.contract import Failure
from hostler.supervisor.llama_arguments import argument_number, argument_value, physical_batch_size
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
    """The most that an engine was measured to take, in bytes. `settled` once it was measured after a response.

    `devices` is the part of `gpu` on each device.
    """

    rss: int = 0
    gpu: int = 0
    devices: Mapping[str, int] = {}
    settled: bool = False

    @property
    def bytes(self) -> int:
        """GPU memory if the engine was seen to use any, else resident memory."""
        return self.gpu or self.rss


class MemoryUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The memory that a process and its descendants take now, in bytes. `devices` is the part of `gpu` on each device."""

    rss: int = 0
    gpu: int = 0
    devices: Mapping[str, int] = {}


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
    devices = {
        name: max(before.devices.get(name, 0), usage.devices.get(name, 0)) for name in {*before.devices, *usage.devices}
    }
    return PeakMemory(
        rss=max(before.rss, usage.rss), gpu=max(before.gpu, usage.gpu), devices=devices,
        settled=before.settled or settled,
    )  # fmt: skip


def memory_need(
    profile: Profile, facts: ModelFacts | None, peak: PeakMemory | None = None, *, size: int = 0
) -> MemoryNeed:
    """The memory that an engine of `profile` will take. `size` of its file counts where that has no header.

    A declared size wins. Else it is the estimate from the file's header, raised by a higher measurement. A lower one
    counts only once it is settled, since engines take their memory while they work, and never for less than weights and
    cache unless it is a GPU's reading: what an engine keeps on a GPU is not part of its resident memory.
    """
    if profile.memory is not None:
        return MemoryNeed(total=profile.memory, declared=True)
    estimated = _estimated(profile, facts, size)
    if peak is None or not peak.bytes:
        return estimated
    held = estimated.weights + estimated.cache
    off_gpu = 1.0 - offloaded_share(profile, facts)
    least = int(held * off_gpu) + peak.gpu if peak.gpu else held
    measured = max(peak.bytes, least)
    if not peak.settled and measured <= estimated.total:
        return estimated
    if measured == held:
        return msgspec.structs.replace(estimated, total=held, other=0)
    return MemoryNeed(total=measured, measured=True)


def offloaded_share(profile: Profile, facts: ModelFacts | None) -> float:
    """The part of a model that its profile puts on GPUs, from 0 to 1; all of it unless `gpu_layers` is a lower number."""
    if not isinstance(profile.gpu_layers, int):
        return 1.0
    if facts is None or not facts.blocks:
        return 1.0 if profile.gpu_layers else 0.0
    # One more than the blocks: the output layer.
    return min(1.0, profile.gpu_layers / (facts.blocks + 1))


def does_not_fit(
    profile: Profile, wanted: MemoryNeed, budget: int, *, beside: Sequence[str] = (), device: str = ""
) -> Failure:
    """The failure of a model that is larger than the budget, or than what pinned models (`beside`) leave of it.

    `budget` is the host's, or what models may take of `device`.
    """
    key, where = (f"devices.{device}.budget", f" on {device}") if device else ("memory_budget", "")
    if beside:
        message = f"{profile.name} needs {wanted}{where}, which does not fit into {gib(budget)} GiB beside pinned "
        message += f"{', '.join(beside)}: raise {key}, or unpin"
        return Failure(kind="does_not_fit", message=message)
    ways = [f"raise {key}"]
    if wanted.cache > wanted.total - budget:
        ways.append("lower this profile's context or parallel")
    if wanted.cache and "-ctk" not in profile.args and "--cache-type-k" not in profile.args:
        ways.append("store the cache as q8_0 (args: -ctk q8_0 -ctv q8_0 -fa on)")
    ways.append("use a smaller quantization")
    advice = ", or ".join([", ".join(ways[:-1]), ways[-1]])
    limit = f"models may take {gib(budget)} GiB of it" if device else f"the budget is {gib(budget)} GiB"
    message = f"{profile.name} needs {wanted}{where}; {limit}: {advice}"
    return Failure(kind="does_not_fit", message=message)


def gib(size: int) -> str:
    """Bytes as GiB with one decimal, below 0.1 with two."""
    value = size / GIB
    return f"{value:.1f}" if value >= 0.1 or size == 0 else f"{value:.2f}"


def _estimated(profile: Profile, facts: ModelFacts | None, size: int) -> MemoryNeed:
    """From the header; without one only the file and the process itself are counted."""
    has_header = facts is not None and facts.bytes > 0
    facts = facts or ModelFacts(bytes=size)
    tokens = argument_number(profile.args, "-c", "--ctx-size", "--context-size")
    if tokens is None or tokens <= 0:
        tokens = profile.context * profile.parallel or facts.training_context
    scale = sum(_cache_scale(profile, *names) for names in (("-ctk", "--cache-type-k"), ("-ctv", "--cache-type-v"))) / 2
    cache = int(facts.kv_bytes_per_token * tokens * scale)
    batch = physical_batch_size(profile)
    vocabulary = facts.metadata.get(f"{facts.architecture}.vocab_size")
    logits = vocabulary if isinstance(vocabulary, int) else USUAL_VOCABULARY
    working = 4 * batch * (logits + _ROWS * facts.embedding_length) if has_header else 0
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
