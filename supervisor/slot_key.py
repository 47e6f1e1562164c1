"""Which saved slots fit which engine, and which models cannot save slots. Reads model files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hostler.profiles.gguf import shard_paths
from hostler.profiles.schema import ModelFacts, Profile
from hostler.supervisor.engine_command import argument_value

_EDGE = 1024 * 1024

# Arguments that change how fast a model runs, not what its slots hold.
_SPEED_ONLY = frozenset({
    "-t", "--threads", "-tb", "--threads-batch", "--threads-http", "-b", "--batch-size", "-ub", "--ubatch-size",
    "-ngl", "--gpu-layers", "--n-gpu-layers", "--load-mode", "--cache-ram", "--sse-ping-interval",
    "-to", "--timeout", "-lv", "--verbosity", "--log-verbosity",
})  # fmt: skip
_DRAFT = ("-md", "--model-draft", "-hfd", "--hf-repo-draft", "--spec-draft-model", "--spec-type")


def unsupported_reason(profile: Profile, facts: ModelFacts | None) -> str:
    """Why slots of this profile cannot be saved; empty if they can.

    Measured: with sliding windows or recurrent layers a restored slot is processed again, or gives wrong answers.
    """
    if facts is None:
        return "the model file has no readable header"
    windows = [value for name, value in facts.metadata.items() if name.endswith(".attention.sliding_window")]
    if facts.sliding_window or any(windows):
        return "the model has sliding windows"
    if facts.recurrent:
        return "the model has recurrent layers"
    if (
        profile.embeddings
        or argument_value(profile.args, "--embedding", "--embeddings")
        or "--reranking" in profile.args
    ):
        return "the profile does not generate text"
    if any(word in _DRAFT for word in profile.args):
        return "the state of a draft model is not saved"
    return ""


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


def signature(profile: Profile, file: Path) -> tuple[object, ...]:
    """Changes whenever a file changes that `slot_key` reads, and is much cheaper. Blocks."""
    files = (*shard_paths(file), *(path for word in profile.args for path in _paths(word)))
    return tuple((str(path), state.st_size, state.st_mtime_ns) for path in files for state in (path.stat(),))


def slot_key(profile: Profile, file: Path, build: str) -> str:
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
    others = [file_identity(path) for word in arguments for path in _paths(word)]
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
    )
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _paths(word: str) -> Iterator[Path]:
    """The files that an argument names: one, several in a comma list, each with an optional `:scale`."""
    for part in word.split(","):
        for text in (part, part.rpartition(":")[0]):
            try:
                if text and Path(text).is_file():
                    yield Path(text)
            except OSError:  # too long for a name
                continue
