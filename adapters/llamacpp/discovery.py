"""Asks a llama-server which models it has: `/v1/models`, and `/props` for the one that it runs."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import msgspec

from hostler.adapters.openai.discovery import read_entry
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
    quantization_in,
    short_text,
    texts,
    unavailable,
    whole,
)
from hostler.adapters.thinking_values import default_thinking, template_thinking

_LIST, _PROPS = "/v1/models", "/props"
_SUFFIX = ".gguf"


def discover() -> Discovery:
    """The models. Raises `ListUnavailable`. A router is not asked about single models: it might load them."""
    answer, props_answer = yield (Query(path=_LIST), Query(path=_PROPS))
    body, props = document(answer), mapping(document(props_answer))
    listed = entries(body, "data")
    if listed is None:
        raise unavailable(_LIST, answer)
    # Older servers list what a model can do in Ollama's form beside OpenAI's.
    beside = {model_name(each.get("name")): texts(each.get("capabilities")) for each in entries(body, "models") or ()}
    runs_one = len(listed) == 1 and props.get("role") != "router"
    models = []
    for entry in listed:
        model = read_entry(entry)
        if model is not None:
            model = _with_capabilities(model, beside.get(model.name, ()))
            models.append(_named(_with_props(model, props) if runs_one and props else model))
    return ModelReport(models=distinct(models))


def _with_capabilities(model: RemoteModel, words: tuple[str, ...]) -> RemoteModel:
    given = tuple(word for word in words if word in ("completion", "embedding", "rerank", "decision"))
    return (
        model
        if not given
        else msgspec.structs.replace(model, capabilities=tuple(dict.fromkeys((*given, *(model.capabilities or ())))))
    )


def _with_props(model: RemoteModel, props: dict[str, Any]) -> RemoteModel:
    """The model with what the server says of the one that it runs."""
    modalities, caps = mapping(props.get("modalities")), mapping(props.get("chat_template_caps"))
    template = props.get("chat_template")
    template = template if isinstance(template, str) else ""
    context = whole(mapping(props.get("default_generation_settings")).get("n_ctx"), model.context)
    found = list(model.capabilities or ("completion",))
    found += [ours for theirs, ours in (("vision", "vision"), ("audio", "audio")) if modalities.get(theirs) is True]
    if caps.get("supports_tools") is True or caps.get("supports_tool_calls") is True or "tools" in template:
        found.append("tools")
    thinking = template_thinking(template)
    if thinking:
        found.append("thinking")
    quantization = short_text(props.get("model_ftype")) or quantization_in(short_text(props.get("model_path")))
    return msgspec.structs.replace(
        model,
        context=context,
        running_context=context,
        capabilities=tuple(dict.fromkeys(found)),
        quantization=quantization or model.quantization,
        thinking=thinking,
        thinking_default=default_thinking(thinking),
        runner=LLAMACPP,
        chat_template=template if len(template) < 100_000 else "",
    )


def _named(model: RemoteModel) -> RemoteModel:
    """The model under the name of its file where it has the file's path for a name. A server with one model accepts any
    name."""
    if not model.name.lower().endswith(_SUFFIX) and "/" not in model.name.lstrip("/") and "\\" not in model.name:
        return model
    if not model.name.startswith(("/", "./", "../")) and "\\" not in model.name and not model.name.endswith(_SUFFIX):
        return model  # a repository on a hub
    path = PureWindowsPath(model.name) if "\\" in model.name else PurePosixPath(model.name)
    name = path.name[: -len(_SUFFIX)] if path.name.lower().endswith(_SUFFIX) else path.name
    return msgspec.structs.replace(model, name=name) if name else model
