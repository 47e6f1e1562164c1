"""The arguments of llama-server: those that a profile stands for, and what is read from its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.context_checkpoints import ARGUMENTS, DEFAULT_COUNT, VARIABLES, needs_checkpoints

#: The longest text that becomes an embedding unless a profile's `batch` is larger: it is processed in one batch.
EMBEDDED_TOKENS: Final = 2048

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


def plain_name(word: str) -> str:
    """An argument's name as it is documented: the engine takes underscores for hyphens, too."""
    return word.replace("_", "-") if word.startswith("--") else word


def llama_arguments(
    profile: Profile,
    settings: SupervisorSettings,
    *,
    file: Path,
    host: str,
    port: int,
    facts: ModelFacts | None,
    program: Sequence[str] = (),
) -> list[str]:
    """The arguments that serve `profile`, without its own. A profile's context is what one request gets, so the engine
    gets that times `parallel`."""
    arguments = ["-m", str(file), "--alias", profile.name, "--host", host, "--port", str(port)]
    arguments += ["-c", str(profile.context * profile.parallel), "-np", str(profile.parallel)]
    arguments += ["-b", str(batch_size(profile)), "--cache-ram", str(profile.cache_ram_mib)]
    if profile.threads is not None:
        arguments += ["-t", str(profile.threads)]
    if profile.gpu_layers is not None:
        arguments += ["-ngl", str(profile.gpu_layers)]
    if profile.mmproj:
        arguments += ["--mmproj", profile.mmproj]
    if profile.draft:
        arguments += ["-md", profile.draft]
    if settings.slots_dir is not None:
        arguments += ["--slot-save-path", settings.slots_dir]
        if facts is not None and needs_checkpoints(facts) and not _chooses_checkpoints(profile, program):
            arguments += ["--ctx-checkpoints", str(DEFAULT_COUNT)]
    if profile.embeddings:
        arguments += ["--embeddings", "-ub", str(physical_batch_size(profile))]
        if not _has_pooling_type(facts):
            # Without pooling, as in chat models, the engine gives no embeddings in OpenAI's protocol.
            arguments += ["--pooling", "mean"]
    return [*arguments, "--metrics", "--no-ui", "--offline", "--cors-origins", "localhost", "--sse-ping-interval", "5"]


def _chooses_checkpoints(profile: Profile, words: Sequence[str]) -> bool:
    """Whether the engine's own command line or the profile's variables set it; its arguments win anyway."""
    return argument_value(words, *ARGUMENTS) is not None or not profile.env.keys().isdisjoint(VARIABLES)


def _has_pooling_type(facts: ModelFacts | None) -> bool:
    return facts is not None and any(name.endswith(".pooling_type") for name in facts.metadata)
