"""Asks an Ollama server which models it has: `/api/tags`, `/api/ps`, and `/api/show` for those that are new."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.adapters.remote_models import (
    Discovery,
    Fact,
    ModelReport,
    Query,
    QueryAnswer,
    RemoteModel,
    distinct,
    document,
    entries,
    mapping,
    model_name,
    parameter_count,
    short_text,
    texts,
    timestamp,
    unavailable,
    whole,
)
from hostler.adapters.thinking_values import read_value, read_values

_TAGS, _PS, _SHOW = "/api/tags", "/api/ps", "/api/show"
#: Models that are asked about in one discovery, at most; the others are asked about next time.
MAX_SHOWN = 256
#: As many facts of a model's file are kept.
_MAX_METADATA = 256
#: What Ollama has converted for its engine from a model that is listed as well.
_CONVERTED = re.compile(r"llamacpp:[0-9a-f]{64}")
_NUM_CTX = re.compile(r"^num_ctx\s+([0-9]{1,12})\s*$", re.MULTILINE)


def discover(known: Mapping[str, RemoteModel]) -> Discovery:
    """The models; what is `known` of those that have not changed is not asked again. Raises `ListUnavailable`."""
    tags, running = yield (Query(path=_TAGS), Query(path=_PS))
    listed = entries(document(tags), "models")
    if listed is None:
        raise unavailable(_TAGS, tags)
    loaded = _running_contexts(running)
    models: dict[str, RemoteModel] = {}
    for model in distinct(map(_read_tag, listed)):
        before = known.get(model.name)
        unchanged = before is not None and before.detailed and before.digest == model.digest
        models[model.name] = before if unchanged and before is not None else model
    new = [name for name, model in models.items() if not model.detailed][:MAX_SHOWN]
    shown = (yield tuple(_show(name) for name in new)) if new else ()
    for name, answer in zip(new, shown, strict=True):
        models[name] = _with_details(models[name], document(answer))
    return ModelReport(
        models=tuple(_with_running(model, loaded.get(model.name, model.running_context)) for model in models.values())
    )


def _show(name: str) -> Query:
    return Query(method="POST", path=_SHOW, body=msgspec.json.encode({"model": name}))


def _read_tag(entry: dict[str, Any]) -> RemoteModel | None:
    name = model_name(entry.get("name")) or model_name(entry.get("model"))
    if not name or _CONVERTED.fullmatch(name):
        return None
    details = mapping(entry.get("details"))
    return RemoteModel(
        name=name,
        context=whole(details.get("context_length")),
        capabilities=texts(entry.get("capabilities")) or None,
        quantization=short_text(details.get("quantization_level")),
        architecture=short_text(details.get("family")),
        parameters=parameter_count(details.get("parameter_size")),
        embedding_length=whole(details.get("embedding_length")),
        size=whole(entry.get("size")),
        digest=short_text(entry.get("digest")).removeprefix("sha256:"),
        modified_at=timestamp(entry.get("modified_at")),
        runner=short_text(entry.get("runner")),
    )


def _with_details(model: RemoteModel, shown: Any) -> RemoteModel:
    """The model with what `/api/show` says of it."""
    if not isinstance(shown, dict):
        return model
    details, facts = mapping(shown.get("details")), mapping(shown.get("model_info"))
    architecture = short_text(facts.get("general.architecture")) or short_text(details.get("family"))
    parameters = shown.get("parameters")
    set_context = _NUM_CTX.search(parameters[:100_000]) if isinstance(parameters, str) else None
    thinking = mapping(shown.get("thinking"))
    template = facts.get("tokenizer.chat_template")
    return msgspec.structs.replace(
        model,
        context=whole(set_context[1] if set_context else 0, facts.get(f"{architecture}.context_length"), model.context),
        capabilities=texts(shown.get("capabilities")) or model.capabilities,
        quantization=short_text(details.get("quantization_level")) or model.quantization,
        architecture=architecture or model.architecture,
        parameters=whole(facts.get("general.parameter_count")) or model.parameters,
        embedding_length=whole(facts.get(f"{architecture}.embedding_length")) or model.embedding_length,
        thinking=read_values(thinking.get("values")),
        thinking_default=read_value(thinking.get("default")),
        runner=short_text(shown.get("runner")) or model.runner,
        chat_template=template if isinstance(template, str) and len(template) < 100_000 else "",
        metadata=_metadata(facts),
        detailed=True,
    )


def _metadata(facts: Mapping[str, Any]) -> dict[str, Fact]:
    found: dict[str, Fact] = {}
    for key, value in list(facts.items())[:_MAX_METADATA]:
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            continue  # of no type that GGUF has, and nothing could send it on
        if isinstance(value, bool | int | float) or value is None or (isinstance(value, str) and len(value) <= 1000):
            found[key[:200]] = value
    return found


def _running_contexts(answer: QueryAnswer) -> dict[str, int]:
    """The contexts with which models were loaded."""
    listed = entries(document(answer), "models") or []
    return {model_name(entry.get("name")): whole(entry.get("context_length")) for entry in listed}


def _with_running(model: RemoteModel, context: int) -> RemoteModel:
    """The model with the context with which it was loaded last, which is what a request really gets."""
    return (
        model
        if not context or context == model.running_context
        else msgspec.structs.replace(model, running_context=context)
    )
