"""The cards of models: of profiles, of servers' models, and of those that clients derived from others."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import msgspec

from hostler.adapters.model_list import CardState, ModelCard
from hostler.adapters.remote_models import LLAMACPP, RemoteModel, guessed_capabilities
from hostler.adapters.thinking_values import default_thinking, template_thinking
from hostler.gateway.backend_settings import ModelDescription
from hostler.gateway.settings import VariantSettings
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ModelFacts
from hostler.supervisor.contract import ModelStatus, ProfileInfo, State

_CARD_STATES: dict[State, CardState] = {
    "stopped": "unloaded",
    "starting": "loading",
    "ready": "loaded",
    "stopping": "unloaded",
    "backoff": "failed",
    "failed": "failed",
}

#: A model on several hosts is listed with the best of its states.
_BEST_FIRST: tuple[CardState, ...] = ("loaded", "loading", "sleeping", "unloaded", "failed")

_DIGEST = re.compile(r"[0-9a-f]{64}")


def profile_card(profile: ProfileInfo, status: ModelStatus | None) -> ModelCard:
    """The card of a profile on a host."""
    thinks = profile.facts is not None and "thinking" in profile.facts.capabilities
    thinking = (template_thinking(profile.facts.chat_template) or (True,)) if thinks and profile.facts else ()
    return ModelCard(
        name=profile.name,
        aliases=profile.aliases,
        state=_CARD_STATES[status.state] if status else "unloaded",
        context=profile.context,
        parallel=profile.parallel,
        created=int(profile.modified_at),
        modified_at=profile.modified_at,
        size=profile.size,
        digest=profile.digest,
        facts=profile.facts,
        capabilities=_capabilities(profile),
        thinking=thinking,
        thinking_default=default_thinking(thinking),
        runner=LLAMACPP,
        description=profile.description,
        metadata=profile.metadata,
        progress=profile.progress,
        listed=profile.listed,
        memory_bytes=status.memory_bytes if status else 0,
        gpu_bytes=status.gpu_bytes if status else 0,
        failure=status.failure.message if status and status.failure else None,
        percent=status.percent if status and status.state == "starting" else None,
    )


def _capabilities(profile: ProfileInfo) -> tuple[str, ...]:
    if profile.facts is not None:
        return profile.facts.capabilities
    return ("embedding",) if profile.embeddings else ("completion",)


def server_card(
    name: str,
    model: RemoteModel | None,
    described: ModelDescription,
    *,
    name_there: str,
    since: int,
    context: int = 0,
) -> ModelCard:
    """The card of a server's model, from what the server says and from the settings, which take precedence.

    `context` is for a server that does not say. Models of unknown age are as old as `since`, in seconds.
    """
    if model is None:
        model = RemoteModel(name=name_there)
    capabilities: tuple[str, ...]
    if described.capabilities is not None:
        capabilities = described.capabilities
    else:
        capabilities = guessed_capabilities(name_there) if model.capabilities is None else model.capabilities
    quantization = described.quantization or model.quantization
    has_facts = bool(quantization or model.architecture or model.parameters or model.metadata or model.capabilities)
    facts = ModelFacts(
        architecture=model.architecture,
        name=name_there,
        parameters=model.parameters,
        quantization=quantization or "unknown",
        training_context=model.context,
        embedding_length=model.embedding_length,
        chat_template=model.chat_template,
        capabilities=capabilities,
        metadata=model.metadata,
        bytes=model.size,
    )
    return ModelCard(
        name=name,
        state="loaded",
        state_known=False,
        context=described.context or context or model.running_context or model.context,
        created=model.created or int(model.modified_at) or since,
        modified_at=model.modified_at or float(model.created),
        size=model.size,
        digest=model.digest if _DIGEST.fullmatch(model.digest) else "",
        facts=facts if has_facts or described.capabilities is not None else None,
        capabilities=capabilities,
        thinking=model.thinking,
        thinking_default=model.thinking_default,
        runner=model.runner,
        description=described.description or model.description,
        metadata=described.metadata,
    )


def preset_card(name: str, preset: Preset, base: ModelCard) -> ModelCard:
    """The card of a model that a client created from another. A plain copy keeps the digest."""
    digest = base.digest
    if preset.changes_requests or preset.license:
        settings = msgspec.json.encode(msgspec.structs.replace(preset, created_at=0.0))
        digest = hashlib.sha256(base.digest.encode() + settings).hexdigest()
    return msgspec.structs.replace(
        base,
        name=name,
        aliases=(),
        listed=True,
        digest=digest,
        created=int(preset.created_at),
        modified_at=preset.created_at,
        preset=preset,
    )


def variant_card(name: str, variant: VariantSettings, base: ModelCard) -> ModelCard:
    """The card of a variant of the settings. Its base runs for it, as for a copy."""
    settings = base.digest.encode() + name.encode() + msgspec.json.encode(variant)
    return msgspec.structs.replace(
        base,
        name=name,
        aliases=(),
        digest=hashlib.sha256(settings).hexdigest(),
        description=variant.description or base.description,
        preset=Preset(model=base.name),
    )


def merge_cards(one: ModelCard, other: ModelCard) -> ModelCard:
    """The same model on two hosts: the better state, and the smaller context, which both have."""
    better = min((one, other), key=lambda card: _BEST_FIRST.index(card.state))
    return msgspec.structs.replace(better, context=min(one.context, other.context))


def only_chat_model(cards: Iterable[ModelCard]) -> str | None:
    """The name of the only listed model that is not just for embeddings; `None` if there are several, or none."""
    chats = [card.name for card in cards if card.listed and "completion" in card.capabilities]
    return chats[0] if len(chats) == 1 else None
