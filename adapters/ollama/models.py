"""Lists and details of models in Ollama's form, from the catalogue's snapshot."""

from __future__ import annotations

import hashlib
from typing import Any

from hostler.adapters.base import WireResponse
from hostler.adapters.errors import ModelNotFound
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.model_names import normalized, ollama_name
from hostler.adapters.ollama import go_compat
from hostler.adapters.ollama.go_compat import FOREVER, format_time
from hostler.adapters.ollama.schema import JSON
from hostler.profiles.gguf import tensors
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ModelFacts

_NO_FACTS = ModelFacts(architecture="unknown")
_NO_PRESET = Preset(model="")
_HIDDEN = ("general.name", "tokenizer.chat_template")


def list_tags(listing: ModelList) -> WireResponse:
    """All listed models, the newest first; aliases have entries of their own, as after `ollama cp`."""
    cards = sorted((card for card in listing.cards if card.listed), key=lambda card: -card.modified_at)
    entries: dict[str, dict[str, Any]] = {}
    for card in cards:
        for name in (card.name, *card.aliases):
            entries.setdefault(normalized(name), _entry(ollama_name(name), card))
    return respond({"models": list(entries.values())})


def list_running(listing: ModelList) -> WireResponse:
    """The models that are loaded or loading, those that expire last first. Not those of which that is not known."""
    # A derived model runs under the name of its base.
    running = [card for card in listing.cards if card.state_known and card.state in ("loaded", "loading")]
    cards = [card for card in running if not _is_derived(card)]
    cards.sort(key=lambda card: -(card.expires_at if card.expires_at is not None else float("inf")))
    models = []
    for card in cards:
        name = ollama_name(card.name)
        entry: dict[str, Any] = {
            "name": name,
            "model": name,
            "size": card.memory_bytes or _size(card),
            "digest": card_digest(card),
            "details": _details(card),
            "expires_at": FOREVER if card.expires_at is None else format_time(card.expires_at),
            "size_vram": card.gpu_bytes,
            "context_length": card.context,
            **_runner(card),
        }
        models.append(entry)
    return respond({"models": models})


def show_model(listing: ModelList, name: str, *, basename: bool = False) -> WireResponse:
    """One model in detail. `basename` puts the requested name where GitHub Copilot looks for one."""
    card = find_card(listing, name)
    facts = card.facts or _NO_FACTS
    template = facts.chat_template or "{{ .Prompt }}"
    preset = card.preset or _NO_PRESET
    settings = _settings(card, preset)
    body: dict[str, Any] = {"license": "\n".join(preset.license)} if preset.license else {}
    body["modelfile"] = _modelfile(card, preset, template, settings)
    if settings:
        body["parameters"] = "\n".join(parameter_line(key, _literal(value)) for key, value in settings)
    body["template"] = template
    if preset.system:
        body["system"] = preset.system
    body["details"] = _details(card)
    if preset.messages:
        body["messages"] = [{"role": message.role, "content": message.content} for message in preset.messages]
    body["model_info"] = _model_info(card, facts)
    if basename:
        body["model_info"]["general.basename"] = name
    if entries := tensors(facts):
        body["tensors"] = [{"name": tensor, "type": kind, "shape": shape} for tensor, kind, shape in entries]
    if card.thinking:
        default = {} if card.thinking_default is None else {"default": card.thinking_default}
        body["thinking"] = {"values": card.thinking, **default}
    body |= _runner(card)
    body |= {"capabilities": card.capabilities, "modified_at": format_time(card.modified_at)}
    return respond(body)


def find_card(listing: ModelList, name: str) -> ModelCard:
    """The card for a name in any spelling. Raises `ModelNotFound`."""
    card = listing.resolve(name)
    if card is None:
        raise ModelNotFound(f"model {name[:200]!r} not found", model=name, param="model")
    return card


def respond(body: object, *, status: int = 200) -> WireResponse:
    return WireResponse(status=status, media_type=JSON, body=go_compat.encode_json(body))


def parameter_line(name: str, value: object) -> str:
    return f"{name:<30} {value}"


def card_digest(card: ModelCard) -> str:
    """64 hex digits, distinct per model: clients take models with the same digest for one."""
    return card.digest or hashlib.sha256(card.name.encode()).hexdigest()


def human_number(count: int) -> str:
    """A number of parameters in short form, for example `134.52M`."""
    if count >= 1_000_000_000:
        billions = count / 1e9
        return f"{billions:.0f}B" if billions == int(billions) else f"{billions:.1f}B"
    if count >= 1_000_000:
        millions = count / 1e6
        return f"{millions:.0f}M" if millions == int(millions) else f"{millions:.2f}M"
    if count >= 1_000:
        return f"{count / 1e3:.0f}K"
    return str(count)


def _entry(name: str, card: ModelCard) -> dict[str, Any]:
    details = _details(card)
    if card.context:
        details["context_length"] = card.context
    if card.facts is not None and card.facts.embedding_length:
        details["embedding_length"] = card.facts.embedding_length
    return {
        "name": name,
        "model": name,
        "modified_at": format_time(card.modified_at),
        "size": _size(card),
        "digest": card_digest(card),
        "details": details,
        "capabilities": card.capabilities,
        **_runner(card),
    }


def _runner(card: ModelCard) -> dict[str, str]:
    return {"runner": card.runner} if card.runner else {}


def _size(card: ModelCard) -> int:
    # Never 0: clients divide by it, and models without a local file have no size.
    return max(card.size, 1)


def _details(card: ModelCard) -> dict[str, Any]:
    facts = card.facts or _NO_FACTS
    return {
        "parent_model": ollama_name(card.preset.parent) if card.preset is not None and card.preset.parent else "",
        "format": "gguf",
        "family": facts.architecture or _NO_FACTS.architecture,
        "families": [facts.architecture or _NO_FACTS.architecture],
        "parameter_size": human_number(facts.parameters) if facts.parameters else "",
        "quantization_level": facts.quantization,
    }


def _model_info(card: ModelCard, facts: ModelFacts) -> dict[str, Any]:
    # Clients fill any context length that they find, so there is only one key: the real one.
    architecture = facts.architecture or _NO_FACTS.architecture
    info: dict[str, Any] = {
        key: value for key, value in facts.metadata.items() if key not in _HIDDEN and not key.endswith("context_length")
    }
    info["general.architecture"] = architecture
    if facts.parameters:
        info["general.parameter_count"] = facts.parameters
    if card.context:
        info[f"{architecture}.context_length"] = card.context
    return dict(sorted(info.items()))


def _is_derived(card: ModelCard) -> bool:
    return card.preset is not None and card.preset.model != card.name


def _settings(card: ModelCard, preset: Preset) -> list[tuple[str, object]]:
    """The parameters; those with several values repeat."""
    settings: list[tuple[str, object]] = [("num_ctx", card.context)] if card.context else []
    for name, value in preset.parameters.items():
        settings += [(name, item) for item in value] if isinstance(value, tuple) else [(name, value)]
    return settings


def _literal(value: object) -> str:
    """A value as Go formats it."""
    if isinstance(value, str):
        return go_compat.quote(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _modelfile(card: ModelCard, preset: Preset, template: str, settings: list[tuple[str, object]]) -> str:
    base = preset.parent or preset.model or card.name
    lines = [
        '# Modelfile generated by "ollama show"',
        f"FROM {ollama_name(base)}",
        f"TEMPLATE {_quoted_block(template)}",
    ]
    if preset.system:
        lines.append(f"SYSTEM {_quoted_block(preset.system)}")
    for name, value in settings:
        lines.append(f"PARAMETER {name} {_literal(value)}")
    lines += [f"LICENSE {_quoted_block(text)}" for text in preset.license]
    lines += [f"MESSAGE {message.role} {_quoted_block(message.content)}" for message in preset.messages]
    return "\n".join(lines) + "\n"


def _quoted_block(text: str) -> str:
    return f'"""{text}"""'
