"""Asks a server with OpenAI's protocol which models it has: `GET /models`, whatever it adds to the entries.

Known additions are those of vLLM, OpenRouter, Groq, Mistral, Together, LM Studio, llama-server, Gemini and Hostler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hostler.adapters.remote_models import (
    Discovery,
    ListUnavailable,
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
    quantization_in,
    short_text,
    texts,
    timestamp,
    unavailable,
    whole,
)

#: Gemini's names begin with this; its API accepts them without.
_GEMINI = "models/"

_USUAL = "/v1"
#: What servers answer where they have no list of models.
_NO_LIST = frozenset({200, 404, 405})

_INPUTS = {"image": "vision", "audio": "audio"}
_OUTPUTS = {"text": "completion", "image": "image", "embeddings": "embedding", "embedding": "embedding"}
_PARAMETERS = {
    "tools": "tools",
    "reasoning": "thinking",
    "reasoning_effort": "thinking",
    "include_reasoning": "thinking",
}
#: What servers call a capability or the kind of a model.
_WORDS = {
    **dict.fromkeys(("completion", "chat", "completion_chat", "language", "llm", "text", "code"), "completion"),
    **dict.fromkeys(("tools", "tool_use", "function_calling", "tool_calling", "tool_calls"), "tools"),
    **dict.fromkeys(("vision", "image_input", "multimodal", "vlm"), "vision"),
    **dict.fromkeys(("thinking", "reasoning"), "thinking"),
    **dict.fromkeys(("embedding", "embeddings", "text-embedding", "embed"), "embedding"),
    **dict.fromkeys(("rerank", "reranker", "reranking", "score"), "rerank"),
    **dict.fromkeys(("decision", "systemone"), "decision"),
    **dict.fromkeys(("insert", "infill", "completion_fim", "fim"), "insert"),
    "audio": "audio",
    "image": "image",
}
_KINDS = frozenset({"completion", "embedding", "rerank", "decision"})
#: Words of `type` that stand for more than one capability.
_TYPES = {"vlm": ("completion", "vision"), "audio": (), "image": ("image",), "moderation": ()}


def discover(prefixes: Sequence[str]) -> Discovery:
    """The models at the first of these prefixes that has a list. Raises `ListUnavailable`, with a hint if only `/v1` is
    missing."""
    path, answer = "", QueryAnswer()
    for prefix in prefixes:
        path = f"{prefix}/models"
        (answer,) = yield (Query(path=path),)
        found = read_models(document(answer))
        if found is not None:
            return ModelReport(models=found, prefix=prefix if len(prefixes) > 1 else None)
        if answer.status not in _NO_LIST:
            break
    if answer.status in _NO_LIST and _USUAL not in prefixes:
        (usual,) = yield (Query(path=f"{_USUAL}/models"),)
        if read_models(document(usual)) is not None:
            raise ListUnavailable(
                f"there is no list of models at its URL, but there is one below {_USUAL}: add it to the URL"
            )
    raise unavailable(path, answer)


def read_models(value: Any) -> tuple[RemoteModel, ...] | None:
    """The models of a list; `None` if it is none."""
    listed = entries(value, "data", "models")
    if listed is None:
        return None
    if listed and all(model_name(entry.get("id")).startswith(_GEMINI) for entry in listed):
        listed = [{**entry, "id": entry["id"].strip().removeprefix(_GEMINI)} for entry in listed]
    return distinct(read_entry(entry) for entry in listed)


def read_entry(entry: dict[str, Any]) -> RemoteModel | None:
    """A model as an entry of a list describes it; `None` without a name."""
    name = model_name(entry.get("id")) or model_name(entry.get("name"))
    if not name:
        return None
    meta, provider = mapping(entry.get("meta")), mapping(entry.get("top_provider"))
    running = whole(entry.get("loaded_context_length"), meta.get("n_ctx"))
    quantization = entry.get("quantization")
    return RemoteModel(
        name=name,
        aliases=tuple(filter(None, map(model_name, texts(entry.get("aliases"))))),
        context=running
        or whole(
            *(entry.get(key) for key in ("context_length", "max_model_len", "context_window", "max_context_length")),
            *(entry.get(key) for key in ("max_input_tokens", "max_seq_len", "n_ctx")),
            provider.get("context_length"),
        ),
        running_context=running,
        capabilities=_capabilities(entry),
        quantization=short_text(quantization)
        or short_text(mapping(quantization).get("name"))
        or short_text(meta.get("ftype"))
        or quantization_in(name),
        architecture=short_text(entry.get("arch")),
        parameters=parameter_count(meta.get("n_params")),
        embedding_length=whole(meta.get("n_embd")),
        size=whole(meta.get("size"), entry.get("size_bytes")),
        created=whole(entry.get("created")) or int(timestamp(entry.get("created_at"))),
        description=short_text(entry.get("description")),
    )


def _capabilities(entry: dict[str, Any]) -> tuple[str, ...] | None:
    """What the entry says that the model can do; `None` if it says nothing."""
    architecture = mapping(entry.get("architecture"))
    found: list[str] = []
    given = entry.get("capabilities")
    words = (
        texts(given) if isinstance(given, list) else tuple(name for name, on in mapping(given).items() if on is True)
    )
    found += [_WORDS[word] for word in words if word in _WORDS]
    kind = short_text(entry.get("type")).lower()
    found += _TYPES.get(kind, (_WORDS[kind],) if kind in _WORDS else ())
    found += [_OUTPUTS[each] for each in texts(architecture.get("output_modalities")) if each in _OUTPUTS]
    found += [_INPUTS[each] for each in texts(architecture.get("input_modalities")) if each in _INPUTS]
    found += [_PARAMETERS[each] for each in texts(entry.get("supported_parameters")) if each in _PARAMETERS]
    if not found:
        return () if kind in _TYPES else None
    if not _KINDS.intersection(found) and "image" not in found:
        found.insert(0, "completion")
    return tuple(dict.fromkeys(found))
