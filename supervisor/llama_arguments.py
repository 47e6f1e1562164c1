"""The arguments of llama-server: those that a profile stands for, and what is read from its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.context_checkpoints import ARGUMENTS, DEFAULT_COUNT, VARIABLES, needs_checkpoints

#: The longest text that becomes an embedding unless a profile's `batch` is larger: it is processed in one batch.
EMBEDDED_TOKENS: Final = 2048

#: More layers than any model has.
ALL_LAYERS: Final = 999

# Arguments without a value, and the value that they stand for.
_SWITCHES: Final = {"-kvu": "on", "--kv-unified": "on", "-no-kvu": "off", "--no-kv-unified": "off"}


def argument_value(arguments: Sequence[str], *names: str) -> str | None:
    """The value of the argument that has one of `names`, or `None`. The last one wins, as in the engine."""
    found: str | None = None
    for index, word in enumerate(arguments):
        if plain_name(word) not in names:
            continue
        if plain_name(word) in _SWITCHES:
            found = _SWITCHES[plain_name(word)]
        elif index + 1 < len(arguments):
            found = arguments[index + 1]
    return found


def argument_number(arguments: Sequence[str], *names: str) -> int | None:
    """`argument_value` as an integer, or `None` if it is none."""
    try:
        return int(argument_value(arguments, *names) or "")
    except ValueError:
        return None


def batch_size(profile: Profile) -> int:
    """How many tokens the engine takes at a time; for embeddings this also limits the length of a text."""
    return max(profile.batch, min(profile.context, EMBEDDED_TOKENS)) if profile.embeddings else profile.batch


def physical_batch_size(profile: Profile) -> int:
    """How many tokens the engine computes at a time."""
    batch = argument_number(profile.args, "-ub", "--ubatch-size")
    return batch or (batch_size(profile) if profile.embeddings else min(512, profile.batch))


def layer_number(layers: int | str | None) -> int | None:
    """The layers on the GPU for programs that take numbers only; `None` leaves the choice to them."""
    if isinstance(layers, str):
        return ALL_LAYERS if layers == "all" else None
    return layers


def plain_name(word: str) -> str:
    """An argument's name as it is documented: the engine takes underscores for hyphens, too."""
    return word.replace("_", "-") if word.startswith("--") else word


class LlamaOption(msgspec.Struct, frozen=True):
    """An option in its spellings, the current one first, with its values. `lost`: what is missing without it, if anything."""

    spellings: tuple[str, ...]
    values: tuple[str, ...] = ()
    lost: str = ""


def llama_arguments(
    profile: Profile, settings: SupervisorSettings, *, file: Path, host: str, port: int, facts: ModelFacts | None,
    known: Collection[str] | None = None, program: Sequence[str] = (),
) -> tuple[list[str], list[str]]:  # fmt: skip
    """The arguments that serve `profile`, without its own, and what is lost since the program lacks options.

    `known` are the options that it has; `None` for all. `program` is its command line so far. A profile's context is what
    one request gets, so the engine gets that times `parallel`.
    """
    # Every llama-server has these.
    arguments = ["-m", str(file), "--host", host, "--port", str(port), "-c", str(profile.context * profile.parallel)]
    lost = []
    for option in (*_profile_options(profile, facts, known), *_common_options(profile, settings, facts, program)):
        spelling = next((each for each in option.spellings if known is None or each in known), None)
        if spelling is not None:
            arguments += (spelling, *option.values)
        elif option.lost:
            lost.append(f"{option.spellings[0]} ({option.lost})")
    return arguments, lost


def _profile_options(
    profile: Profile, facts: ModelFacts | None, known: Collection[str] | None
) -> Iterator[LlamaOption]:
    yield LlamaOption(("-np", "--parallel"), (str(profile.parallel),), "one conversation at a time")
    yield LlamaOption(("-b", "--batch-size"), (str(batch_size(profile)),), "its own batch size")
    if profile.threads is not None:
        yield LlamaOption(("-t", "--threads"), (str(profile.threads),), "its own number of threads")
    layers = profile.gpu_layers
    if layers is not None and known is not None and "--fit" not in known:  # from before it took words
        layers = layer_number(layers)
    if layers is not None:
        yield LlamaOption(("-ngl", "--gpu-layers", "--n-gpu-layers"), (str(layers),), "built without a GPU")
    if profile.mmproj:
        yield LlamaOption(("--mmproj", "-mm"), (profile.mmproj,), "no images and no sound")
    if profile.draft:
        yield LlamaOption(("-md", "--model-draft"), (profile.draft,), "no draft model")
    if profile.embeddings:
        yield LlamaOption(("--embeddings", "--embedding"), (), "no embeddings")
        yield LlamaOption(("-ub", "--ubatch-size"), (str(physical_batch_size(profile)),), "long texts are refused")
        if not _has_pooling_type(facts):
            # Without pooling, as in chat models, the engine gives no embeddings in OpenAI's protocol.
            yield LlamaOption(("--pooling",), ("mean",), "no embeddings of chat models")


def _common_options(
    profile: Profile, settings: SupervisorSettings, facts: ModelFacts | None, program: Sequence[str]
) -> Iterator[LlamaOption]:
    yield LlamaOption(("--alias", "-a"), (profile.name,))
    # Without it there is no such cache.
    lost = "prompts are not cached in memory" if profile.cache_ram_mib else ""
    yield LlamaOption(("--cache-ram", "-cram"), (str(profile.cache_ram_mib),), lost)
    if settings.slots_dir is not None:
        yield LlamaOption(("--slot-save-path",), (settings.slots_dir,), "conversations are not kept over a switch")
        if facts is not None and needs_checkpoints(facts) and not _chooses_checkpoints(profile, program):
            yield LlamaOption(("--ctx-checkpoints", "--swa-checkpoints"), (str(DEFAULT_COUNT),))
    yield LlamaOption(("--metrics",), (), "whether it is busy is only known by the gateway")
    yield LlamaOption(("--no-ui", "--no-webui"))
    yield LlamaOption(("--offline",))
    yield LlamaOption(("--cors-origins",), ("localhost",))
    yield LlamaOption(("--sse-ping-interval",), ("5",), "silence while it reads a long prompt")


def _chooses_checkpoints(profile: Profile, words: Sequence[str]) -> bool:
    """Whether the engine's own command line or the profile's variables set it; its arguments win anyway."""
    return argument_value(words, *ARGUMENTS) is not None or not profile.env.keys().isdisjoint(VARIABLES)


def _has_pooling_type(facts: ModelFacts | None) -> bool:
    return facts is not None and any(name.endswith(".pooling_type") for name in facts.metadata)
