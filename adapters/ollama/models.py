"""Models as Ollama lists, shows and counts them, from the catalogue's snapshot."""

from __future__ import annotations

import hashlib
from typing import Any

from hostler.adapters.base import WireResponse
from hostler.adapters.errors import ModelNotFound
from hostler.adapters.model_list import ModelCard, ModelList
from hostler.adapters.model_names import normalized, ollama_name
from hostler.adapters.ollama import go_compat
from hostler.adapters.ollama.go_compat import FOREVER, timestamp
from hostler.adapters.ollama.schema import JSON
from hostler.profiles.gguf import tensors
from hostler.profiles.presets import Preset
from hostler.profiles.schema import ModelFacts

_NO_FACTS = ModelFacts(architecture="unknown")
_NO_PRESET = Preset(model="")
_HIDDEN = ("general.name", "tokenizer.chat_template")


def tags(listing: ModelList) -> WireResponse:
    """All listed models, the newest first, aliases as entries of their own as after `ollama cp`."""
    cards = sorted((card for card in listing.cards if card.listed), key=lambda card: -card.modified_at)
    found: dict[str, dict[str, Any]] = {}
    for card in cards:
        for name in (card.name, *card.aliases):
            found.setdefault(normalized(name), _entry(ollama_name(name), card))
    return respond({"models": list(found.values())})


def running(listing: ModelList) -> WireResponse:
    """The models that are loaded or being loaded, those that stay longest first."""
    # A model that was made of another one runs under the other one's name.
    cards = [card for card in listing.cards if card.state in ("loaded", "loading") and not _is_made_of(card)]
    cards.sort(key=lambda card: -(card.expires_at if card.expires_at is not None else float("inf")))
    models = []
    for card in cards:
        name = ollama_name(card.name)
        entry: dict[str, Any] = {
            "name": name,
            "model": name,
            "size": card.memory_bytes or _size(card),
            "digest": digest(card),
            "details": _details(card),
            "expires_at": FOREVER if card.expires_at is None else timestamp(card.expires_at),
            "size_vram": card.gpu_bytes,
            "context_length": card.context,
        }
        models.append(entry)
    return respond({"models": models})


def show(listing: ModelList, name: str, *, basename: bool = False) -> WireResponse:
    """One model in full. `basename` puts the name that was asked for where GitHub Copilot looks for one."""
    card = find(listing, name)
    facts = card.facts or _NO_FACTS
    template = facts.chat_template or "{{ .Prompt }}"
    preset = card.preset or _NO_PRESET
    settings = _settings(card, preset)
    body: dict[str, Any] = {"license": "\n".join(preset.license)} if preset.license else {}
    body["modelfile"] = _modelfile(card, preset, template, settings)
    if settings:
        body["parameters"] = "\n".join(parameter(key, _literal(value)) for key, value in settings)
    body["template"] = template
    if preset.system:
        body["system"] = preset.system
    body["details"] = _details(card)
    if preset.messages:
        body["messages"] = [{"role": turn.role, "content": turn.content} for turn in preset.messages]
    body["model_info"] = _model_info(card, facts)
    if basename:
        body["model_info"]["general.basename"] = name
    if told := tensors(facts):
        body["tensors"] = [{"name": each, "type": kind, "shape": shape} for each, kind, shape in told]
    body |= {"capabilities": card.capabilities, "modified_at": timestamp(card.modified_at)}
    return respond(body)


def find(listing: ModelList, name: str) -> ModelCard:
    """The card of a name in any of its spellings. Raises `ModelNotFound`."""
    card = listing.resolve(name)
    if card is None:
        raise ModelNotFound(f"model {name[:200]!r} not found", model=name, param="model")
    return card


def respond(body: object, *, status: int = 200) -> WireResponse:
    """A whole answer."""
    return WireResponse(status=status, media_type=JSON, body=go_compat.write(body))


def parameter(name: str, value: object) -> str:
    """A line of `parameters`."""
    return f"{name:<30} {value}"


def digest(card: ModelCard) -> str:
    """64 hex digits, distinct per model: clients take two models with one digest for the same."""
    return card.digest or hashlib.sha256(card.name.encode()).hexdigest()


def human_number(count: int) -> str:
    """A number of parameters as people write it: `134.52M`."""
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
        "modified_at": timestamp(card.modified_at),
        "size": _size(card),
        "digest": digest(card),
        "details": details,
        "capabilities": card.capabilities,
    }


def _size(card: ModelCard) -> int:
    # Clients divide by it; a model that runs elsewhere has no size here.
    return max(card.size, 1)


def _details(card: ModelCard) -> dict[str, Any]:
    facts = card.facts or _NO_FACTS
    return {
        "parent_model": ollama_name(card.preset.parent) if card.preset is not None and card.preset.parent else "",
        "format": "gguf",
        "family": facts.architecture,
        "families": [facts.architecture],
        "parameter_size": human_number(facts.parameters) if facts.parameters else "",
        "quantization_level": facts.quantization,
    }


def _model_info(card: ModelCard, facts: ModelFacts) -> dict[str, Any]:
    # Clients fill whatever is called a context to the brim: there is one such key, with the context that really runs.
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


def _is_made_of(card: ModelCard) -> bool:
    return card.preset is not None and card.preset.model != card.name


def _settings(card: ModelCard, preset: Preset) -> list[tuple[str, object]]:
    """The parameters, one for each value."""
    told: list[tuple[str, object]] = [("num_ctx", card.context)] if card.context else []
    for name, value in preset.parameters.items():
        told += [(name, each) for each in value] if isinstance(value, tuple) else [(name, value)]
    return told


def _literal(value: object) -> str:
    """A value as Go writes one."""
    if isinstance(value, str):
        return go_compat.quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _modelfile(card: ModelCard, preset: Preset, template: str, settings: list[tuple[str, object]]) -> str:
    made_of = preset.parent or preset.model or card.name
    lines = [
        '# Modelfile generated by "ollama show"',
        f"FROM {ollama_name(made_of)}",
        f"TEMPLATE {_block(template)}",
    ]
    if preset.system:
        lines.append(f"SYSTEM {_block(preset.system)}")
    for name, value in settings:
        lines.append(f"PARAMETER {name} {_literal(value)}")
    lines += [f"LICENSE {_block(text)}" for text in preset.license]
    lines += [f"MESSAGE {turn.role} {_block(turn.content)}" for turn in preset.messages]
    return "\n".join(lines) + "\n"


def _block(text: str) -> str:
    return f'"""{text}"""'
