"""Which saved slots fit which engine, and which models cannot save slots. Reads model files."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from hostler.profiles.file_reading import home_path
from hostler.profiles.gguf import shard_paths
from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.context_checkpoints import ARGUMENTS, VARIABLES, needs_checkpoints
from hostler.supervisor.engine_command import EMBEDDED, embedded_is_installed, engine_program
from hostler.supervisor.llama_arguments import argument_value, plain_name

_EDGE = 1024 * 1024

# Arguments that change how fast a model runs, not what its slots hold.
_SPEED_ONLY = frozenset({
    "-t", "--threads", "-tb", "--threads-batch", "--threads-http", "-b", "--batch-size", "-ub", "--ubatch-size",
    "-ngl", "--gpu-layers", "--n-gpu-layers", "--load-mode", "--cache-ram", "--sse-ping-interval",
    "-to", "--timeout", "-lv", "--verbosity", "--log-verbosity",
})  # fmt: skip
#: Ways to guess whose state is not missed: text itself has none, and drafts and heads guess worse without it, but no worse
#: answers come of that.
_KEPT_GUESSES = ("none", "ngram-", "draft-simple", "draft-mtp", "draft-eagle3")
#: Flags that set others.
_OTHER_GUESSES = ("--dflash", "--dspark")
#: How the engine writes that a variable is off.
_FALSE = ("", "0", "off", "false", "disabled")


def unsupported_reason(profile: Profile, facts: ModelFacts | None) -> str:
    """Why slots of this profile cannot be kept, whatever the engine's build; empty if they can.

    Measured: with the full cache of a sliding window, prompts that leave a restored slot within its last window get other
    log-probabilities, and other answers. The states of draft models and heads (MTP, EAGLE3) return with the context checkpoints
    only. Without them a draft model of 135M had 25 of 64 guesses right in the first answer, and 34 of 37 in the second, and the
    MTP head of a model with random weights 67 of 537 instead of 85 of 486; answers are the same.
    """
    words = (*shlex.split(profile.engine or ""), *profile.args)
    if facts is None:
        return "the model file has no readable header"
    if profile.embeddings or argument_value(words, "--embedding", "--embeddings") or "--reranking" in words:
        return "the profile does not generate text"
    if _has_full_window(profile, words):
        return "with --swa-full a restored conversation gets wrong answers"
    if needs_checkpoints(facts) and _turns_checkpoints_off(profile, words):
        return "--ctx-checkpoints is 0"
    if (lost := _lost_guesses(profile, words)) and not needs_checkpoints(facts):
        return f"the engine does not save the state of {lost}"
    return ""


def _lost_guesses(profile: Profile, words: Sequence[str]) -> str:
    """The way to guess whose state is missed, if there is one."""
    kinds = argument_value(words, "--spec-type") or profile.env.get("LLAMA_ARG_SPEC_TYPE") or "none"
    lost = [kind for kind in kinds.split(",") if not kind.startswith(_KEPT_GUESSES)]
    lost += [plain_name(word) for word in words if plain_name(word) in _OTHER_GUESSES]
    return lost[0] if lost else ""


def _has_full_window(profile: Profile, words: Sequence[str]) -> bool:
    values = [profile.env.get("LLAMA_ARG_SWA_FULL", "")]
    # For engines that are started through `env`.
    values += [word.partition("=")[2] for word in words if word.startswith("LLAMA_ARG_SWA_FULL=")]
    return "--swa-full" in map(plain_name, words) or any(value.lower() not in _FALSE for value in values)


def _turns_checkpoints_off(profile: Profile, words: Sequence[str]) -> bool:
    number = argument_value(words, *ARGUMENTS)
    return number == "0" if number is not None else any(profile.env.get(name) == "0" for name in VARIABLES)


def clears_idle_slots(profile: Profile) -> bool:
    """Whether the engine itself moves conversations from its slots into memory: with a cache there, and one for all slots."""
    return profile.cache_ram_mib != 0 and argument_value(profile.args, "-kvu", "--kv-unified") == "on"


def file_identity(file: Path) -> str:
    """Tells model files apart without reading them whole: by sizes, times and both ends. Blocks."""
    digest = hashlib.sha256()
    for one in shard_paths(file):
        state = one.stat()
        digest.update(f"{one.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(_EDGE))
        stream.seek(max(0, file.stat().st_size - _EDGE))
        digest.update(stream.read(_EDGE))
    return digest.hexdigest()


def program_identity(engine: str | None) -> str:
    """Tells builds of an engine apart that report the same one: all of the embedded engine do. Blocks.

    Raises `SupervisorError` and `OSError` if it is no longer installed.
    """
    program = engine_program(engine)
    if embedded_is_installed() and program == engine_program(EMBEDDED):
        return f"xllamacpp {metadata.version('xllamacpp')}"
    state = Path(program[0]).stat()
    return f"{state.st_size} {state.st_mtime_ns}"


def signature(profile: Profile, file: Path) -> tuple[object, ...]:
    """Changes whenever a file changes that `slot_key` reads, and is much cheaper. Blocks."""
    words = (*profile.args, profile.mmproj or "", profile.draft or "")
    files = (*shard_paths(file), *(path for word in words for path in _paths(word)))
    return tuple((str(path), state.st_size, state.st_mtime_ns) for path in files for state in (path.stat(),))


def slot_key(profile: Profile, file: Path, build: str, facts: ModelFacts | None = None) -> str:
    """Equal for engines that can read each other's slots: same file, build, slot layout and relevant arguments.

    Blocks. Compute it right after the start, for the file that the engine was started with.
    """
    arguments: list[str] = []
    skip = False
    for word in profile.args:
        skip, skipped = (not skip and word in _SPEED_ONLY), skip
        if not skip and not skipped:
            arguments.append(word)
    # Adapters and projectors are files too, and may be replaced under the same name.
    others = [
        file_identity(path) for word in (*arguments, profile.mmproj or "", profile.draft or "") for path in _paths(word)
    ]
    # Profiles that share a file do not share conversations.
    parts = (
        profile.name,
        file_identity(file),
        build,
        profile.parallel,
        arguments,
        others,
        sorted(profile.env.items()),
        profile.engine,
        profile.mmproj,
        profile.draft,
        _exceeds_first_training(profile, facts),
    )
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _exceeds_first_training(profile: Profile, facts: ModelFacts | None) -> tuple[bool, ...]:
    """Whether the context, of one slot and of all, is larger than the one that the model was first trained with.

    Models like Phi-4-mini (LongRoPE) then turn the keys of all tokens otherwise. Measured: answers to a conversation from the
    other side were wrong.
    """
    first = None if facts is None else facts.metadata.get(f"{facts.architecture}.rope.scaling.original_context_length")
    if not isinstance(first, int):
        return ()
    return profile.context > first, profile.context * profile.parallel > first


def _paths(word: str) -> Iterator[Path]:
    """The files that an argument names: one, several in a comma list, each with an optional `:scale`."""
    for part in word.split(","):
        for text in (part, part.rpartition(":")[0]):
            try:
                if text and (path := home_path(text)).is_file():
                    yield path
            except OSError:  # too long for a name
                continue
