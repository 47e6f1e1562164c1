"""Chooses how a model runs so that it fits: context, requests at a time, cache types and layers on GPUs. Decides only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.memory import GIB, MIB, memory_need

#: Contexts that are tried, the largest first, in tokens. Longer ones only where they are asked for: they take memory that
#: several requests at a time make better use of.
CONTEXTS: Final = (131_072, 65_536, 32_768, 16_384, 8192, 4096, 2048, 1024)
#: Without a GPU, longer prompts take minutes to read.
CPU_CONTEXT: Final = 32_768
#: A text that becomes an embedding is seldom longer.
EMBEDDING_CONTEXT: Final = 8192
#: Below this context, a smaller cache is worth its cost, ...
COMFORTABLE: Final = 32_768
#: ... and layers are rather left in the machine's memory.
LEAST: Final = 8192

_PARALLEL: Final = (4, 2)
_SMALL_CACHE: Final = ("-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on")
#: The part of a memory that is left to others, and at least so many bytes of it.
_SPARE_SHARE: Final = 0.05
_DEVICE_SPARE: Final = 512 * MIB
_MACHINE_SPARE: Final = GIB


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What models may take, in bytes: of the machine's memory, and of its GPUs together. `fits_layers`: the engine chooses
    itself how many layers go on GPUs."""

    memory: int
    gpu: int = 0
    fits_layers: bool = False


class ModelFit(msgspec.Struct, frozen=True, kw_only=True):
    """How a model runs. `fits` is false if it needs more memory than there is; `why` is for people.

    `need` is the memory it takes, in bytes, as estimated.
    """

    context: int
    parallel: int
    gpu_layers: int | None
    args: tuple[str, ...]
    need: int
    fits: bool
    why: str


def room_of(memory: int, devices: Sequence[int], *, fits_layers: bool = False) -> Room:
    """The room in a machine with this much memory, of which `devices` have so much free each, in bytes."""
    gpu = sum(max(0, free - max(_DEVICE_SPARE, int(free * _SPARE_SHARE))) for free in devices)
    return Room(
        memory=max(0, memory - max(_MACHINE_SPARE, int(memory * _SPARE_SHARE))), gpu=gpu, fits_layers=fits_layers
    )


def fit_model(facts: ModelFacts, room: Room, *, embeddings: bool = False, beside: int = 0) -> ModelFit:
    """How the model runs best in this room. `beside` are the bytes of its projector and draft."""
    if room.gpu:
        whole = _in(room.gpu, facts, _contexts(facts, embeddings=embeddings), embeddings=embeddings, beside=beside)
        if whole is not None and (whole.context >= min(LEAST, _longest(facts)) or embeddings):
            layers = None if room.fits_layers else facts.blocks + 1
            return msgspec.structs.replace(whole, gpu_layers=layers, why=f"all layers on the GPU; {whole.why}")
        return _split(facts, room, embeddings=embeddings, beside=beside)
    contexts = [each for each in _contexts(facts, embeddings=embeddings) if each <= CPU_CONTEXT] or [CPU_CONTEXT]
    found = _in(room.memory, facts, contexts, embeddings=embeddings, beside=beside, parallel=False)
    return found or _too_large(facts, room.memory, embeddings=embeddings, beside=beside)


def fit_folder(facts: ModelFacts, room: Room, engine: str) -> ModelFit:
    """How a folder of safetensors runs: its engine takes the memory that it wants, and batches requests."""
    budget = room.gpu or room.memory
    fits = facts.bytes <= budget
    why = f"served by {engine}, which fits it to its memory itself"
    if not fits:
        why = f"does not fit: its weights take {facts.bytes / GIB:.1f} GiB, {budget / GIB:.1f} GiB are free"
    return ModelFit(
        context=min(_longest(facts), COMFORTABLE), parallel=_PARALLEL[0], gpu_layers=None, args=(), need=facts.bytes,
        fits=fits, why=why,
    )  # fmt: skip


def _contexts(facts: ModelFacts, *, embeddings: bool) -> list[int]:
    """The contexts to try: as the model was trained, then shorter ones."""
    longest = _longest(facts)
    if embeddings:
        longest = min(longest, EMBEDDING_CONTEXT)
    return [longest, *(each for each in CONTEXTS if each < longest)]


def _longest(facts: ModelFacts) -> int:
    return min(facts.training_context or LEAST, CONTEXTS[0])


def _in(
    budget: int, facts: ModelFacts, contexts: Sequence[int], *, embeddings: bool, beside: int, parallel: bool = True
) -> ModelFit | None:
    """The best choice within `budget` bytes; `None` if even the shortest context does not fit."""
    plain = _longest_within(budget, facts, contexts, (), embeddings=embeddings, beside=beside)
    small = None
    if not embeddings and (plain is None or plain < min(COMFORTABLE, contexts[0])) and _takes_small_cache(facts):
        small = _longest_within(budget, facts, contexts, _SMALL_CACHE, embeddings=embeddings, beside=beside)
    args = _SMALL_CACHE if small is not None and small > (plain or 0) else ()
    context = small if args else plain
    if context is None:
        return None
    slots = 1
    if parallel:
        slots = next((each for each in _PARALLEL if _need(facts, context, each, args, embeddings, beside) <= budget), 1)
    need = _need(facts, context, slots, args, embeddings, beside)
    return ModelFit(
        context=context, parallel=slots, gpu_layers=None, args=args, need=need, fits=True,
        why=f"takes {_size(need)}: " + "; ".join(_reasons(facts, context, contexts[0], slots, small_cache=bool(args))),
    )  # fmt: skip


def _longest_within(
    budget: int, facts: ModelFacts, contexts: Sequence[int], args: tuple[str, ...], *, embeddings: bool, beside: int
) -> int | None:
    return next((each for each in contexts if _need(facts, each, 1, args, embeddings, beside) <= budget), None)


def _split(facts: ModelFacts, room: Room, *, embeddings: bool, beside: int) -> ModelFit:
    """A model that is larger than the GPUs: its layers are split between them and the machine's memory."""
    contexts = [each for each in _contexts(facts, embeddings=embeddings) if each <= COMFORTABLE]
    contexts = contexts or [_longest(facts)]
    found = _in(room.gpu + room.memory, facts, contexts, embeddings=embeddings, beside=beside, parallel=False)
    if found is None:
        return _too_large(facts, room.gpu + room.memory, embeddings=embeddings, beside=beside)
    if room.fits_layers:
        return msgspec.structs.replace(found, why=f"larger than the GPU: the engine splits it; {found.why}")
    held = found.need - facts.bytes
    of_layers = max(0, room.gpu - (held if held < room.gpu else 0))
    layers = int(facts.blocks * of_layers / facts.bytes) if facts.bytes else 0
    layers = min(layers, facts.blocks)
    why = f"larger than the GPU: {layers} of {facts.blocks} layers on it; {found.why}"
    return msgspec.structs.replace(found, gpu_layers=layers, why=why)


def _too_large(facts: ModelFacts, budget: int, *, embeddings: bool, beside: int) -> ModelFit:
    context = min(_contexts(facts, embeddings=embeddings)[-1], LEAST)
    need = _need(facts, context, 1, (), embeddings, beside)
    return ModelFit(
        context=context, parallel=1, gpu_layers=None, args=(), need=need, fits=False,
        why=f"does not fit: needs {need / GIB:.1f} GiB, {budget / GIB:.1f} GiB are free; use a smaller quantization",
    )  # fmt: skip


def _need(facts: ModelFacts, context: int, parallel: int, args: tuple[str, ...], embeddings: bool, beside: int) -> int:
    profile = Profile(name="m", model="m", context=context, parallel=parallel, args=args, embeddings=embeddings)
    return memory_need(profile, facts).total + beside


def _size(need: int) -> str:
    return f"{need / GIB:.1f} GiB" if need >= GIB else f"{need / MIB:.0f} MiB"


def _takes_small_cache(facts: ModelFacts) -> bool:
    """Whether the cache can be stored in blocks of 32 values."""
    if not facts.kv_bytes_per_token:
        return False
    widths = [facts.metadata.get(f"{facts.architecture}.attention.{key}_length") for key in ("key", "value")]
    heads = facts.metadata.get(f"{facts.architecture}.attention.head_count")
    known = [width for width in widths if isinstance(width, int)]
    if not known and isinstance(heads, int) and heads:
        known = [facts.embedding_length // heads]
    return bool(known) and all(width % 32 == 0 for width in known)


def _reasons(facts: ModelFacts, context: int, wanted: int, slots: int, *, small_cache: bool) -> Iterator[str]:
    trained = facts.training_context or context
    if context >= trained:
        yield f"all {context:,} tokens of context that it was trained on"
    elif context >= wanted:
        yield f"{context:,} of the {trained:,} tokens of context that it was trained on, which is enough for most"
    else:
        yield f"{context:,} of the {trained:,} tokens of context that it was trained on: more does not fit in memory"
    if small_cache:
        yield "the context takes half of its memory, in 8 bits"
    if slots > 1:
        yield f"{slots} requests at a time"
