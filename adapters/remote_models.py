"""The models of servers that are asked what they have: values, and how to read them where every server has its own names.

A discovery is a generator without I/O: it yields requests and receives their answers. Odd values count as absent.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from hostler.adapters import lenient
from hostler.adapters.errors import GatewayError
from hostler.adapters.json_body import NOT_JSON, check_size

#: Models of one server that are read, at most.
MAX_MODELS = 2000
#: The size of an answer that is read, in bytes, at most.
MAX_ANSWER = 16 * 1024 * 1024
_MAX_NAME = 200
_MAX_TEXT = 300
#: Larger numbers are no context lengths.
_MAX_NUMBER = 2**53

Fact = str | int | float | bool | None


#: Ollama's name for llama.cpp's engine.
LLAMACPP = "llamacpp"


class RemoteModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as a server describes it; zero, empty and `None` mean that it does not say.

    `context` is the number of tokens that one request can have, `running_context` the number with which the model is
    loaded, or was the last time. `capabilities` are under Ollama's names, and `rerank`. `thinking` are the values
    that the model accepts for reasoning (`true`, `false`, levels), `thinking_default` the one that it uses without any.
    `runner` is what runs the model, under Ollama's names. `detailed`: the server has been asked for all that it knows.
    """

    name: str
    aliases: tuple[str, ...] = ()
    context: int = 0
    running_context: int = 0
    capabilities: tuple[str, ...] | None = None
    quantization: str = ""
    architecture: str = ""
    parameters: int = 0
    embedding_length: int = 0
    size: int = 0
    digest: str = ""
    created: int = 0
    modified_at: float = 0.0
    description: str = ""
    thinking: tuple[bool | str, ...] = ()
    thinking_default: bool | str | None = None
    runner: str = ""
    chat_template: str = ""
    metadata: Mapping[str, Fact] = {}
    detailed: bool = False


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a server has. `prefix` is the path in front of its routes, where it had to be found out."""

    models: tuple[RemoteModel, ...] = ()
    prefix: str | None = None


class QueryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A server's answer. `status` is 0, and `problem` says why, if there was none."""

    status: int = 0
    body: bytes = b""
    problem: str = ""


class ListUnavailable(GatewayError):
    """A server does not say which models it has."""

    status, code = 502, "backend_error"


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A question for a server, sent as JSON."""

    path: str
    method: str = "GET"
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


#: Yields requests, all of one step together; receives the answers in the same order.
Discovery = Generator[tuple[Query, ...], tuple[QueryAnswer, ...], ModelReport]


def document(answer: QueryAnswer) -> Any:
    """The JSON of a successful answer, else `None`."""
    if answer.status != 200 or not answer.body:
        return None
    try:
        check_size(answer.body)
        return lenient.decode_any(answer.body)
    except (GatewayError, *NOT_JSON):
        return None


def unavailable(path: str, answer: QueryAnswer) -> ListUnavailable:
    """Why there is no list of models."""
    if answer.problem:
        return ListUnavailable(answer.problem)
    if answer.status in (401, 403):
        return ListUnavailable(f"GET {path} rejected the API key (HTTP {answer.status})")
    if answer.status == 200:
        return ListUnavailable(f"GET {path} answered without a list of models")
    return ListUnavailable(f"GET {path} answered with status {answer.status}")


def entries(value: Any, *keys: str) -> list[dict[str, Any]] | None:
    """The objects of a list that is the document itself or below one of `keys`; `None` if there is no list."""
    found = value if isinstance(value, list) else None
    if isinstance(value, dict):
        found = next((value[key] for key in keys if isinstance(value.get(key), list)), None)
    if found is None:
        return None
    return [entry for entry in found[:MAX_MODELS] if isinstance(entry, dict)]


def distinct(models: Iterable[RemoteModel | None]) -> tuple[RemoteModel, ...]:
    """The models, each name once."""
    named: dict[str, RemoteModel] = {}
    for model in models:
        if model is not None:
            named.setdefault(model.name, model)
    return tuple(named.values())


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def texts(value: Any) -> tuple[str, ...]:
    """The short texts of a list."""
    return tuple(text for item in value[:64] if (text := short_text(item))) if isinstance(value, list) else ()


def model_name(value: Any) -> str:
    """A name that can be sent and shown; empty if it is none."""
    if not isinstance(value, str):
        return ""
    name = value.strip()
    return name if 0 < len(name) <= _MAX_NAME and name.isprintable() else ""


def short_text(value: Any) -> str:
    """The value if it is text, on one line, cut where it is long."""
    if not isinstance(value, str):
        return ""
    line = " ".join(value[: 4 * _MAX_TEXT].split())
    return "".join(character for character in line if character.isprintable())[:_MAX_TEXT]


def whole(*values: Any) -> int:
    """The first value that is a positive whole number, also one in text; 0 if there is none."""
    for value in values:
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            value = int(value[:18])
        if isinstance(value, float) and value == value and value.is_integer() and abs(value) < _MAX_NUMBER:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MAX_NUMBER:
            return value
    return 0


def timestamp(value: Any) -> float:
    """Seconds since the epoch, of a number or an RFC 3339 date; 0 if it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if 0 < value < 1e11 else 0.0
    if not isinstance(value, str) or len(value) > 64:
        return 0.0
    # Go writes nanoseconds.
    text = re.sub(r"(\.\d{6})\d+", r"\1", value.strip().replace("Z", "+00:00"))
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError):
        return 0.0


_COUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMBT])?", re.IGNORECASE)
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def parameter_count(value: Any) -> int:
    """A number of parameters, also one such as `8.0B`; 0 if it is none."""
    if isinstance(value, str) and (match := _COUNT.fullmatch(value.strip()[:32])):
        return min(round(float(match[1]) * _FACTORS[(match[2] or "").lower()]), _MAX_NUMBER)
    return whole(value)


_QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])(I?Q[1-8](?:_[A-Z0-9]+)*|BF16|F(?:16|32)|FP(?:8|16)|MXFP4|AWQ|GPTQ|[48]bit)(?![A-Za-z0-9])",
    re.IGNORECASE,
)


def quantization_in(text: str) -> str:
    """The quantisation in the name of a file or model; empty if there is none."""
    match = _QUANTIZATION.search(text)
    return match[1].upper() if match is not None else ""


_EMBEDDING = re.compile(r"embed|\bbge-(?!reranker)|\be5-|\bgte-|minilm", re.IGNORECASE)
_RERANKER = re.compile(r"rerank", re.IGNORECASE)
_DECISION = re.compile(r"decision|systemone|system-one", re.IGNORECASE)
_NO_CHAT = re.compile(
    r"whisper|transcribe|\btts\b|tts-|dall-e|moderation|gpt-image|\bimagen|\bsora|\bveo-", re.IGNORECASE
)


def guessed_capabilities(name: str) -> tuple[str, ...]:
    """What a model can do, judged by its name alone, since its server does not say."""
    if _RERANKER.search(name):
        return ("rerank",)
    if _EMBEDDING.search(name):
        return ("embedding",)
    if _DECISION.search(name):
        return ("decision",)
    return () if _NO_CHAT.search(name) else ("completion",)
