"""The capabilities of a profile's model: those of its file, and those that the engine's arguments add."""

from __future__ import annotations

import msgspec

from hostler.profiles.engines import Engine, as_capabilities
from hostler.profiles.schema import ModelFacts, Profile

_PROJECTORS = ("--mmproj", "-mm", "--mmproj-url", "-mmu")
_RERANKING = frozenset({"--reranking", "--rerank"})
_TEMPLATES = ("--chat-template", "--chat-template-file")
_PROJECTOR_VARIABLES = frozenset({"LLAMA_ARG_MMPROJ", "LLAMA_ARG_MMPROJ_URL"})
_TEMPLATE_VARIABLES = frozenset({"LLAMA_ARG_CHAT_TEMPLATE", "LLAMA_ARG_CHAT_TEMPLATE_FILE"})


def with_arguments(facts: ModelFacts | None, profile: Profile) -> ModelFacts | None:
    """The facts with the capabilities of the profile rather than of the file. Without a file they are the engine's.

    A profile for embeddings, or for reranking, is listed for nothing else. What a projector (`--mmproj`) or another chat
    template supports is not known, so that they may support everything.
    """
    facts = _with_engine(facts, profile.definition)
    if facts is None:
        return None
    if any(argument in _RERANKING for argument in profile.args) or "LLAMA_ARG_RERANKING" in profile.env:
        return msgspec.structs.replace(facts, capabilities=("rerank",))
    added: list[str] = []
    if profile.mmproj or _given(profile, _PROJECTORS) or _PROJECTOR_VARIABLES & profile.env.keys():
        added += ("vision", "audio")
    if _given(profile, _TEMPLATES) or _TEMPLATE_VARIABLES & profile.env.keys():
        added.append("tools")
    if profile.embeddings:
        media = [name for name in (*facts.capabilities, *added) if name in ("vision", "audio")]
        return msgspec.structs.replace(facts, capabilities=("embedding", *dict.fromkeys(media)))
    added = [capability for capability in added if capability not in facts.capabilities]
    if not added:
        return facts
    return msgspec.structs.replace(facts, capabilities=(*facts.capabilities, *added))


def lacking(facts: ModelFacts | None) -> frozenset[str]:
    """What a model certainly cannot do; nothing if its file could not be read.

    Without a chat template of its own a model gets the engine's, about which nothing is known. A model with one can chat,
    also where its profile is for embeddings: engines serve both.
    """
    if facts is None:
        return frozenset()
    if facts.declared:
        return frozenset({"completion"} - {*facts.capabilities})
    known = {"vision", "audio", *(("tools",) if facts.chat_template else ("completion",))}
    return frozenset(known.difference(facts.capabilities))


def _with_engine(facts: ModelFacts | None, engine: Engine | None) -> ModelFacts | None:
    if engine is None or not (engine.serves or engine.capabilities) or not (facts is None or facts.declared):
        return facts
    return msgspec.structs.replace(facts or ModelFacts(), capabilities=as_capabilities(engine), declared=True)


def _given(profile: Profile, flags: tuple[str, ...]) -> bool:
    return any(argument.partition("=")[0] in flags for argument in profile.args)
