"""Asks LM Studio which models it has: its own list, else that of its older API, else OpenAI's."""

from __future__ import annotations

from typing import Any

from hostler.adapters.openai.discovery import read_models
from hostler.adapters.remote_models import (
    LLAMACPP,
    Discovery,
    ModelReport,
    Query,
    RemoteModel,
    distinct,
    document,
    entries,
    mapping,
    model_name,
    parameter_count,
    short_text,
    unavailable,
    whole,
)
from hostler.adapters.thinking_values import read_value, read_values

_LISTS = ("/api/v0/models", "/v1/models")
_V1 = "/api/v1/models"
_KINDS = {"embedding": "embedding", "embeddings": "embedding", "rerank": "rerank", "decision": "decision"}


def discover() -> Discovery:
    """The models. Raises `ListUnavailable`."""
    (answer,) = yield (Query(path=_V1),)
    listed = entries(document(answer), "models")
    if listed is not None:
        return ModelReport(models=distinct(map(_read, listed)))
    for path in _LISTS:
        if answer.status not in (200, 404, 405):
            break
        (answer,) = yield (Query(path=path),)
        found = read_models(document(answer))
        if found is not None:
            return ModelReport(models=found)
    raise unavailable(_V1, answer)


def _read(entry: dict[str, Any]) -> RemoteModel | None:
    name = model_name(entry.get("key")) or model_name(entry.get("id"))
    if not name:
        return None
    instances = entries(entry.get("loaded_instances")) or []
    contexts = [whole(mapping(each.get("config")).get("context_length")) for each in instances]
    running = max(contexts, default=0)
    quantization = entry.get("quantization")
    reasoning, kind = mapping(mapping(entry.get("capabilities")).get("reasoning")), short_text(entry.get("format"))
    return RemoteModel(
        name=name,
        context=running or whole(entry.get("max_context_length")),
        running_context=running,
        capabilities=_capabilities(entry),
        quantization=short_text(mapping(quantization).get("name")) or short_text(quantization),
        architecture=short_text(entry.get("architecture")),
        parameters=parameter_count(entry.get("params_string")),
        size=whole(entry.get("size_bytes")),
        description=short_text(entry.get("description")),
        thinking=read_values(reasoning.get("allowed_options")),
        thinking_default=read_value(reasoning.get("default")),
        runner=LLAMACPP if kind == "gguf" else kind,
    )


def _capabilities(entry: dict[str, Any]) -> tuple[str, ...]:
    kind = _KINDS.get(short_text(entry.get("type")), "completion")
    given = mapping(entry.get("capabilities"))
    found = [kind]
    if given.get("trained_for_tool_use") is True:
        found.append("tools")
    if given.get("vision") is True:
        found.append("vision")
    if given.get("reasoning"):
        found.append("thinking")
    return tuple(found)
